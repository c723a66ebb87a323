_base_ = './qna_vit_tiny_qna_head_8xb128_in1k.py'
model = dict(neck=dict(skip=True))

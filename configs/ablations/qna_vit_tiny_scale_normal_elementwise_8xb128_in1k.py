_base_ = '../qna_vit_tiny_8xb128_in1k.py'
model = dict(backbone=dict(attention_scale='normal_elementwise'))

_base_ = './semfpn_qna_vit_tiny_40k_ade20k.py'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/qna-vit-base_in1k.pth')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

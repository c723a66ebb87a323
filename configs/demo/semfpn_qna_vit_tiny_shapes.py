# QnA-ViT-tiny instead of LinGlo-b0.
_base_ = './semfpn_linglo_b0_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvitattn.QnAViT', arch='tiny'),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

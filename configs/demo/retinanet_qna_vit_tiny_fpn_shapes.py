# QnA-ViT-tiny instead of LinGlo-b0.
_base_ = './retinanet_linglo_b0_fpn_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvitattn.QnAViT', arch='tiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)

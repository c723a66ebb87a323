# QnA-ViT-tiny instead of LinGlo-b0.
_base_ = './linglo_b0_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvitattn.QnAViT', arch='tiny', out_indices=-1),
    head=dict(in_channels=512),
)

# SAG-small instead of LinGlo-b0: strides 4, 8 and 16.
_base_ = './retinanet_linglo_b0_fpn_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvitattn.SAGViT', arch='small', kv_pools=(4, 2, 1)),
    neck=dict(in_channels=[64, 192, 384]),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=6, strides=[4, 8, 16])),
)

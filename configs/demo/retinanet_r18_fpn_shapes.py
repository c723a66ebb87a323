# A peer of the demo: mmdet's ResNet-18 in place of LinGlo-b0, all else the same.
_base_ = ['./retinanet_linglo_b0_fpn_shapes.py']
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)

_base_ = './retinanet_linglo_b2_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='b0', init_cfg=dict(checkpoint='checkpoints/linglo-b0_in1k.pth')),
    neck=dict(in_channels=[64, 160, 256]),
)

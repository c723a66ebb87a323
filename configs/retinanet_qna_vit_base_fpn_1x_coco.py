_base_ = './retinanet_qna_vit_tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/qna-vit-base_in1k.pth')),
    neck=dict(in_channels=[192, 384, 768]),
)

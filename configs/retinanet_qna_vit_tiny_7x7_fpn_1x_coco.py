_base_ = './retinanet_qna_vit_tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        arch='tiny_7x7', init_cfg=dict(checkpoint='checkpoints/qna-vit-tiny-7x7_in1k.pth')
    ),
)

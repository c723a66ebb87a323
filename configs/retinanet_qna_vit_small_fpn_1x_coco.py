_base_ = './retinanet_qna_vit_tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/qna-vit-small_in1k.pth')),
)

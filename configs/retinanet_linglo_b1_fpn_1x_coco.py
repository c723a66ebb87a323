_base_ = './retinanet_linglo_b2_fpn_1x_coco.py'
model = dict(backbone=dict(arch='b1', init_cfg=dict(checkpoint='checkpoints/linglo-b1_in1k.pth')))

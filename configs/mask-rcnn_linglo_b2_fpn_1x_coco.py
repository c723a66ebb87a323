# Not in the paper: mmdet's Mask R-CNN, with its recipe for Swin.
_base_ = [
    '_base_/models/mask_rcnn_fpn.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x_coco_mask_rcnn.py',
    '_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.LinGlo',
        arch='b2',
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/linglo-b2_in1k.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

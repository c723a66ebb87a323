_base_ = [
    '_base_/models/retinanet_fpn.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x_coco.py',
    '_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.QnAViT',
        arch='tiny',
        out_indices=(1, 2, 3),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/qna-vit-tiny_in1k.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)

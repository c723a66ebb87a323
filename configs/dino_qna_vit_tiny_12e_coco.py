# Not in the paper: mmdet's DINO with four scales and its recipe (dino-4scale_r50_8xb2-12e_coco.py).
_base_ = [
    '_base_/models/dino_4scale.py',
    '_base_/datasets/coco_detection_dino.py',
    '_base_/schedules/adamw_12e_coco_dino.py',
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

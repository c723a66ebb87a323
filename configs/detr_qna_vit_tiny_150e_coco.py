# The QnA paper evaluates QnA-ViT with DETR; its release has no code for it. Model, losses,
# augmentation, optimizer and schedule here are mmdet's (detr_r50_8xb2-150e_coco.py), unchanged but
# for the backbone; detr_r50_150e_coco.py is the baseline.
_base_ = [
    '_base_/models/detr.py',
    '_base_/datasets/coco_detection_detr.py',
    '_base_/schedules/adamw_150e_coco_detr.py',
    '_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.QnAViT',
        arch='tiny',
        out_indices=-1,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/qna-vit-tiny_in1k.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[512]),
)

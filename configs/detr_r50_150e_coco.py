# The baseline of the DETR configs with QnA-ViT, on the same data and schedule: mmdet's
# detr_r50_8xb2-150e_coco.py, with torchvision's ResNet-50. Nothing in the model is from mmvitattn.
_base_ = [
    '_base_/models/detr.py',
    '_base_/datasets/coco_detection_detr.py',
    '_base_/schedules/adamw_150e_coco_detr.py',
    '_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(in_channels=[2048]),
)

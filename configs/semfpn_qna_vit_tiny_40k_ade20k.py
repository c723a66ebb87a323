_base_ = [
    '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k_512.py',
    '_base_/schedules/adamw_40k_ade20k.py',
    '_base_/segmentation_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.QnAViT',
        arch='tiny',
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/qna-vit-tiny_in1k.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

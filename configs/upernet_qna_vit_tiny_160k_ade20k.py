# Not in the paper: mmseg's UPerNet, with its recipe for Swin.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k_512.py',
    '_base_/schedules/adamw_160k_ade20k.py',
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
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
train_dataloader = dict(batch_size=2)

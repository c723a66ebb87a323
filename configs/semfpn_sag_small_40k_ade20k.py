_base_ = [
    '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k_512.py',
    '_base_/schedules/adamw_40k_ade20k.py',
    '_base_/segmentation_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.SAGViT',
        arch='small',
        kv_pools=(4, 2, 1),  # not in the paper: faster global attention for large images
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/sag-small_in1k.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[64, 192, 384], num_outs=3),
    decode_head=dict(in_channels=[256, 256, 256], in_index=[0, 1, 2], feature_strides=[4, 8, 16]),
)

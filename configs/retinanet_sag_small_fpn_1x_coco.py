_base_ = [
    '_base_/models/retinanet_fpn.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x_coco.py',
    '_base_/detection_runtime.py',
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
    neck=dict(in_channels=[64, 192, 384]),
    # strides 4, 8, 16 and two more; anchors of RetinaNet's usual 32 to 512 pixels
    bbox_head=dict(anchor_generator=dict(octave_base_scale=8, strides=[4, 8, 16, 32, 64])),
)

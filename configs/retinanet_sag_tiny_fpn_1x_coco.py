_base_ = './retinanet_sag_small_fpn_1x_coco.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=56),
    backbone=dict(
        arch='tiny',
        kv_pools=(4, 2, 1, 1),
        init_cfg=dict(checkpoint='checkpoints/sag-tiny_in1k.pth'),
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=4, strides=[7, 14, 28, 56, 112])),
)

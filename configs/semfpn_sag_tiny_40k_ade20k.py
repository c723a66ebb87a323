_base_ = './semfpn_sag_small_40k_ade20k.py'
model = dict(
    backbone=dict(
        arch='tiny',
        kv_pools=(4, 2, 1, 1),
        init_cfg=dict(checkpoint='checkpoints/sag-tiny_in1k.pth'),
    ),
    neck=dict(in_channels=[192, 192, 192, 192], num_outs=4),
    decode_head=dict(
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[7, 14, 28, 56],
    ),
)

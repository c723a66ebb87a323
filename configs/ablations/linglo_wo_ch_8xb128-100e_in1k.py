# 16 x 16 patches and one resolution; depths and FFN ratios of b0, channels and heads of section 5.4
# of the paper.
_base_ = './linglo_b0_wo_c_8xb128-100e_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=(150, 150, 150, 150),
            depths=(2, 3, 3, 2),
            num_heads=(3, 3, 3, 3),
            ffn_ratios=(8, 8, 4, 4),
        ),
        patch_size=16,
        downsample=None,
    ),
    head=dict(in_channels=150),
)

_base_ = './semfpn_linglo_b2_40k_ade20k.py'
model = dict(
    backbone=dict(arch='b0', init_cfg=dict(checkpoint='checkpoints/linglo-b0_in1k.pth')),
    neck=dict(in_channels=[32, 64, 160, 256]),
)

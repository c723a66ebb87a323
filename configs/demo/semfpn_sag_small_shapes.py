# SAG-small instead of LinGlo-b0: strides 4, 8 and 16.
_base_ = './semfpn_linglo_b0_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvitattn.SAGViT', arch='small', kv_pools=(4, 2, 1)),
    neck=dict(in_channels=[64, 192, 384], num_outs=3),
    decode_head=dict(in_channels=[64] * 3, in_index=[0, 1, 2], feature_strides=[4, 8, 16]),
)

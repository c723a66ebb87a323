_base_ = './linglo_b2_8xb128_in1k.py'
model = dict(backbone=dict(arch='b0'), head=dict(in_channels=256))

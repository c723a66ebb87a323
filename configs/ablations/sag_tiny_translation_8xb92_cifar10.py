# SAG, table 5, D: translations with reflection, one embedding for all.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(local='translation'))

# SAG, table 5, E: one position table for all shifts.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(position='shared'))

# SAG, table 5, C: translations with reflection, one embedding and one position table for all.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(local='translation', position='shared'))

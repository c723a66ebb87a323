# SAG, table 6, I: Swin's block instead of local attention over shifts.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(local='window'))

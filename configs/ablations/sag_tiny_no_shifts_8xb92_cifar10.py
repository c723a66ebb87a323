# SAG, table 5, A: only hierarchical global attention.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(local=None))

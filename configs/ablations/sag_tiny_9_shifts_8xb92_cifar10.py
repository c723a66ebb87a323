# SAG, table 5, B: the nine shifts along one axis.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(num_shifts=9))

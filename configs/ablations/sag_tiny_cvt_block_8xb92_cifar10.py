# SAG, table 6, II: CvT's embedding and convolutional projections instead of shifts.
_base_ = '../sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(local='convolution'))

# The model that the release's main_tiny_cifar.py builds: 4 heads (line 264), where the paper has 3.
_base_ = './sag_tiny_8xb92_cifar100.py'
model = dict(backbone=dict(arch='cifar_tiny_4_heads'))

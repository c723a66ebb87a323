_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/cifar10_deit.py',
    '_base_/schedules/adamw_300e_cifar_sag.py',
    '_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmvitattn.SAGViT', arch='cifar_tiny', out_indices=-1),
    head=dict(num_classes=10, in_channels=192, topk=(1,)),
)
lr = 5e-4 * 8 * 92 / 512
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-6 / lr),
    *_base_.param_scheduler[1:],
]
auto_scale_lr = dict(base_batch_size=8 * 92)

_base_ = './sag_tiny_8xb92_cifar100.py'
model = dict(backbone=dict(arch='cifar_small'), head=dict(in_channels=384))
train_dataloader = dict(batch_size=40)
lr = 5e-4 * 8 * 40 / 512
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-6 / lr),
    *_base_.param_scheduler[1:],
]
auto_scale_lr = dict(base_batch_size=8 * 40)

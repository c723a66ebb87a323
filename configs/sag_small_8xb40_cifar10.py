_base_ = './sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(arch='cifar_small'), head=dict(in_channels=384))
train_dataloader = dict(batch_size=40)
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 8 * 40 / 512))
auto_scale_lr = dict(base_batch_size=8 * 40)

_base_ = './sag_tiny_8xb92_cifar10.py'
model = dict(backbone=dict(arch='cifar_base'), head=dict(in_channels=768))
train_dataloader = dict(batch_size=20)
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 8 * 20 / 512))
auto_scale_lr = dict(base_batch_size=8 * 20)

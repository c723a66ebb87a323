_base_ = './sag_small_8xb64_in1k.py'
model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=192))
train_dataloader = dict(batch_size=92)
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 8 * 92 / 512))
auto_scale_lr = dict(base_batch_size=8 * 92)

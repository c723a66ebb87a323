# mmdet's recipe for DETR in 150 epochs: AdamW 1e-4 at batch 16, a tenth of it for the backbone,
# x0.1 after epoch 100, gradient norm clipped at 0.1.
_base_ = ['./adamw.py']
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(  # norms and biases decay too
        norm_decay_mult=1.0,
        bias_decay_mult=1.0,
        custom_keys={'backbone': dict(lr_mult=0.1)},
    ),
)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=150, by_epoch=True, milestones=[100], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=150, val_interval=1)
auto_scale_lr = dict(enable=False, base_batch_size=16)

# A small Semantic FPN, trained from scratch on the embedded data set.
_base_ = [
    '../_base_/models/semantic_fpn.py',
    '../_base_/datasets/shapes_segmentation.py',
    '../_base_/schedules/adamw_40k_ade20k.py',
    '../_base_/segmentation_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(type='mmvitattn.LinGlo', arch='b0', drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64] * 4,
        channels=64,
        num_classes=12,
        init_cfg=dict(_delete_=True, type='Normal', std=0.01, override=dict(name='conv_seg')),
    ),
)
max_iters = 1000
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=150),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=150, end=max_iters, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=500))
randomness = dict(seed=0)

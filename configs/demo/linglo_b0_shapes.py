# LinGlo-b0 as a classifier of the embedded data set, from scratch.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/shapes_classification.py',
    '../_base_/schedules/adamw_300e_in1k.py',
    '../_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmvitattn.LinGlo', arch='b0', out_indices=-1, drop_path_rate=0.0),
    head=dict(num_classes=6, in_channels=256, topk=(1,)),
    train_cfg=dict(augments=None),
)
max_epochs = 30
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=1,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)

# LinGlo-b0 on Tiny-ImageNet in 20 epochs, some 4 hours of one CPU core with `--amp` (bfloat16).
# ImageNet's schedule, shortened. The learning rate is that of ImageNet's recipe, for an eighth of
# its batch: with few steps a high rate pays. One epoch of warm-up (790 steps), no stochastic depth.
_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/tiny_imagenet_64.py',
    '_base_/schedules/adamw_300e_in1k.py',
    '_base_/classification_runtime.py',
]
max_epochs = 20
model = dict(
    backbone=dict(type='mmvitattn.LinGlo', arch='b0', out_indices=-1, drop_path_rate=0.0),
    head=dict(num_classes=202, in_channels=256, topk=(1, 5)),
    train_cfg=dict(augments=None),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=1,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(logger=dict(interval=50), saliency=dict(interval=100))
randomness = dict(seed=0)

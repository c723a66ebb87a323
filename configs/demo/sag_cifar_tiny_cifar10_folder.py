# SAG's CIFAR model on a fixed subset of real pictures, every 25th for training and every 10th for
# validation, without the paper's augmentation, on two CPU cores. It shows that the model learns,
# but not which accuracy it can reach.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/cifar10_folder.py',
    '../_base_/schedules/adamw_300e_cifar_sag.py',
    '../_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmvitattn.SAGViT', arch='cifar_tiny', out_indices=-1, drop_path_rate=0.0),
    head=dict(
        num_classes=10,
        in_channels=192,
        topk=(1,),
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
    ),
    train_cfg=dict(augments=None),
)
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(indices=list(range(0, 50_000, 25)))
)
val_dataloader = dict(
    batch_size=50, num_workers=1, dataset=dict(indices=list(range(0, 10_000, 10)))
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=1000),
]
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(max_epochs=4, val_interval=1)
default_hooks = dict(logger=dict(interval=25))
log_processor = dict(window_size=50)
randomness = dict(seed=0)

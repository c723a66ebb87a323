# CIFAR-10 with DeiT's augmentation; the pictures come as RGB.
_base_ = ['./deit_augmentation.py']
data_layout = 'cifar10'  # of tools/prepare_data.py
dataset_type = 'CIFAR10'
data_root = 'data/cifar10'
mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, as in the release
data_preprocessor = dict(
    type='ClsDataPreprocessor', num_classes=10, mean=mean, std=std, to_rgb=False
)
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(_base_.rand_augment, hparams=dict(pad_val=[124, 116, 104], interpolation='bicubic')),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    dict(_base_.random_erasing, fill_color=mean, fill_std=std),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=92,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=92,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

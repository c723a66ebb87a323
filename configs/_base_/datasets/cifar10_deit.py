# CIFAR-10 as SAG's release reads it (datasets.py, line 111): DeiT's augmentation with a random crop
# in place of the random resized one, mean and standard deviation of CIFAR-10. The pictures are RGB.
_base_ = ['./deit_augmentation.py']
data_layout = 'cifar10'  # of tools/prepare_data.py
dataset_type = 'CIFAR10'
data_root = 'data/cifar10'
mean, std = [125.307, 122.961, 113.8575], [63.0105, 62.0925, 66.708]
data_preprocessor = dict(
    type='ClsDataPreprocessor', num_classes=10, mean=mean, std=std, to_rgb=False
)
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(_base_.rand_augment, hparams=dict(pad_val=[125, 123, 114], interpolation='bicubic')),
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
    train_dataloader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

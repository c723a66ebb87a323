# Tiny-ImageNet, 64 x 64 pixels, in the public copy with 202 classes;
# `python tools/prepare_data.py tiny-imagenet` checks it and lists the validation labels.
# Augmentation for a schedule of 20 epochs, in which a network of 3 M parameters hardly overfits:
# crops of at least 35 % of the area (8 %, as for ImageNet, would be 18 x 18 pixels) and mirroring.
# DeiT's RandAugment, erasing and mixing pay off over hundreds of epochs.
data_layout = 'tiny-imagenet'
data_root = 'data/tiny-imagenet-200'
data_preprocessor = dict(
    num_classes=202,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.35, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
loader = dict(num_workers=1, persistent_workers=True, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    loader,
    batch_size=128,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    loader,
    batch_size=100,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val/images',
        ann_file='val_labels.txt',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

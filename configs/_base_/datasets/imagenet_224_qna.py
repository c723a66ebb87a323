# ImageNet-1K as the release of QnA reads it: SimCLRv2's colour jitter of strength 0.3 behind
# RandAugment (augment/color_util.py, lines 69 and 382), no repeated augmentation.
_base_ = ['./imagenet_224_deit.py']
train_pipeline = [
    *_base_.train_pipeline[:-2],
    dict(
        type='RandomApply',
        transforms=dict(
            type='ColorJitter', brightness=0.24, contrast=0.24, saturation=0.24, hue=0.06
        ),
        prob=0.8,
    ),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.299),  # of blue, green and red
    ),
    *_base_.train_pipeline[-2:],  # random erasing, packing
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)

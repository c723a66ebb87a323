# ImageNet-1K with QnA's augmentation: colour jitter beside RandAugment, no repeated augmentation.
_base_ = ['./imagenet_224_deit.py']
train_pipeline = [
    *_base_.train_pipeline[:-2],
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3),
    *_base_.train_pipeline[-2:],  # random erasing, packing
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)

# ImageNet-1K with DeiT's augmentation and colour jitter, without repeated augmentation.
_base_ = ['./imagenet_224_deit.py']
train_pipeline = [
    *_base_.train_pipeline[:-2],
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    *_base_.train_pipeline[-2:],  # random erasing, packing
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)

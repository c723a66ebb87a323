# ImageNet-1K with DeiT's augmentation, without repeated augmentation. The release's option
# --color-jitter has no effect: its timm reads it only where RandAugment is off
# (timm/data/transforms_factory.py, line 104).
_base_ = ['./imagenet_224_deit.py']
train_dataloader = dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))

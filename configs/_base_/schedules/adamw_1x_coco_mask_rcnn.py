# mmdet's recipe for Mask R-CNN with Swin at 1x: weight decay 0.05, 1,000 iterations of warm-up.
_base_ = ['./adamw_1x_coco.py']
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]

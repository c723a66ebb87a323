# mmdet's recipe for DINO in 12 epochs: DETR's rates, x0.1 after epoch 11.
_base_ = ['./adamw_150e_coco_detr.py']
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[11], gamma=0.1),
]
train_cfg = dict(max_epochs=12)

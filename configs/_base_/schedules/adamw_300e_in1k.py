# 300 epochs, AdamW 1e-3 at batch 1024, 5 epochs of linear warm-up, then cosine (DeiT's end: 1e-5).
_base_ = ['./adamw.py']
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
auto_scale_lr = dict(enable=False, base_batch_size=1024)

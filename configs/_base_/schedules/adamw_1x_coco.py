# 12 epochs, AdamW 1e-4 at batch 16, x0.1 after epochs 8 and 11; mmdet's 500-iteration warm-up.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'saliency': dict(decay_mult=0.0),  # LinGlo
            'position_bias': dict(decay_mult=0.0),  # QnA-ViT
            'attention_scale': dict(decay_mult=0.0),
            'position.table': dict(decay_mult=0.0),  # SAG
        },
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)

# 300 epochs, AdamW 1e-3 at batch 1024, 5 epochs of linear warm-up, then cosine (DeiT's end: 1e-5).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
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
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=1024)

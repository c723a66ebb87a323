# 40k iterations, AdamW 1e-4 at batch 32, polynomial decay with power 0.9.
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
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)

# AdamW without weight decay on norms, biases, position tables and their like. A schedule adds lr,
# weight decay, param_scheduler, train_cfg and the batch that they are for.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
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
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

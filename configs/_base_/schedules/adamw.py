# AdamW. The constructor leaves norms, biases and what the model names in `no_weight_decay()`
# without weight decay. A schedule adds lr, weight decay, param_scheduler, train_cfg and the batch
# that they are for.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    constructor='mmvitattn.WeightDecayOptimWrapperConstructor',
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

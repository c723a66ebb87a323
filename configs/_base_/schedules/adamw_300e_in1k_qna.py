# 300 epochs, AdamW 5e-4 at batch 1024, 5 epochs of linear warm-up from 0, then cosine to 0; weight
# decay on everything but the window tables; no gradient clipping.
_base_ = ['./adamw_300e_in1k.py']
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys={
            'position_bias': dict(decay_mult=0.0),
            'attention_scale': dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]

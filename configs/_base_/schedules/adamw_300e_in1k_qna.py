# 300 epochs, AdamW, no gradient clipping, as in the release's configs/imagenet_qna.py. lr 5e-4 x
# batch / 256 (its train.py, line 361), so 2e-3 at batch 1024; 5 epochs of linear warm-up from 0,
# then cosine to 0.
_base_ = ['./adamw_300e_in1k.py']
optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 1024 / 256),
    # configs/imagenet_qna.py, line 40, exempts only the tables; norms, biases and queries decay
    paramwise_cfg=dict(
        norm_decay_mult=1.0,
        bias_decay_mult=1.0,
        custom_keys={'.query': dict(decay_mult=1.0)},
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

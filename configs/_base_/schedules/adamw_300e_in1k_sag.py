# 300 epochs, AdamW, gradient norm clipped at 5. At batch 512: lr 5e-4 (the paper; the release's
# default for sag_small is 2.5e-4 with 5 epochs of warm-up), 20 epochs of warm-up from 5e-7, cosine
# to 5e-6. All of it scales with the batch: a config sets lr for its own.
_base_ = ['./adamw_300e_in1k.py']
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=True, begin=20, end=300),
]
auto_scale_lr = dict(base_batch_size=512)

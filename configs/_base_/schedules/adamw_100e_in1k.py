# The 300-epoch recipe in 100 epochs, 3 of them warm-up: the LinGlo paper's for its ablations.
_base_ = ['./adamw_300e_in1k.py']
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=3, end=100),
]
train_cfg = dict(max_epochs=100)

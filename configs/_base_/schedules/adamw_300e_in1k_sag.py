# 300 epochs, AdamW, gradient norm clipped at 5: the paper, section 3.3. At batch 512: lr 5e-4, 20
# epochs of warm-up from 5e-7, cosine to 5e-6; all three scale with the batch, as in the release's
# main_tiny_imagenet.py (line 377), so a config sets lr for its own. The release's
# main_small_imagenet.py differs: half the rate (2.5e-4), 5 epochs of warm-up, ends fixed at 1e-6
# and 1e-5. sag_small follows the paper here.
_base_ = ['./adamw_300e_in1k.py']
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=5.0),
    # position tables decay in the release: its models name no exceptions
    # (timm/optim/optim_factory.py, line 102)
    paramwise_cfg=dict(custom_keys={'.position.table': dict(decay_mult=1.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    # over all epochs, warm-up included, as timm's (timm/scheduler/cosine_lr.py, line 68)
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=True, begin=0, end=300),
]
auto_scale_lr = dict(base_batch_size=512)

# 300 epochs, AdamW, gradient norm clipped at 5: the paper, section 3.3. lr 5e-4 x batch / 512, the
# same as 2.5e-4 x batch / 256 of the release's CIFAR scripts (main_tiny_cifar.py, line 377); 5
# epochs of warm-up from 1e-6, cosine to 1e-5. These two do not scale with the batch, so a config
# sets start_factor with its lr.
_base_ = ['./adamw_300e_in1k_sag.py']
lr = 5e-4
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / lr, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=0, end=300),
]

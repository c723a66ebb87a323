_base_ = './qna_vit_tiny_8xb128_in1k.py'
model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
param_scheduler = [  # a longer warm-up than the smaller models'
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]

# mmdet's recipe for Mask2Former in 50 epochs, 368,750 iterations of batch 16: AdamW 1e-4, a tenth
# of it for the backbone, weight decay 0.05 except for norms and embeddings of the head, clipping
# at 0.01. Evaluated every 5,000 iterations and after the last.
_base_ = ['./adamw.py']
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        bias_decay_mult=1.0,
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            **dict.fromkeys(('query_embed', 'query_feat', 'level_embed'), no_decay),
        },
    ),
)
param_scheduler = [
    dict(
        type='MultiStepLR',
        begin=0,
        end=368750,
        by_epoch=False,
        milestones=[327778, 355092],
        gamma=0.1,
    ),
]
train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=368750,
    val_interval=5000,
    dynamic_intervals=[(365001, 368750)],
)
auto_scale_lr = dict(enable=False, base_batch_size=16)

# QnA-ViT-tiny in the place of LinGlo-b0: four times the work, so half the epochs.
_base_ = './retinanet_linglo_b0_fpn_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvitattn.QnAViT', arch='tiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
max_epochs = 5
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=1,
        end=max_epochs,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)

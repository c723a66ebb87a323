# A small RetinaNet, trained on the embedded data set in minutes on two CPU cores. It starts from
# the weights in the package; with `tools/train.py ... --from-scratch` it does not.
_base_ = [
    '../_base_/models/retinanet_fpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/adamw_1x_coco.py',
    '../_base_/detection_runtime.py',
]
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        type='mmvitattn.LinGlo',
        arch='b0',
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='mmvitattn://linglo-b0_tiny-imagenet'),
    ),
    neck=dict(in_channels=[64, 160, 256], out_channels=64, num_outs=3),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=8),
        # Shapes are 13 to 102 pixels long.
        anchor_generator=dict(octave_base_scale=3, ratios=[1.0], strides=[8, 16, 32]),
        reg_decoded_bbox=True,
        init_cfg=dict(
            _delete_=True,  # mmdet's default
            type='Normal',
            layer='Conv2d',
            std=0.01,
            override=dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01),
        ),
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(assigner=dict(pos_iou_thr=0.4, neg_iou_thr=0.3)),
)
max_epochs = 10
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0, norm_type=2)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=150),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=1,
        end=max_epochs,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.002, priority=49)]
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# With 0.3, mmdet's default, second choices would cover the right boxes.
default_hooks = dict(logger=dict(interval=25), visualization=dict(score_thr=0.5))
randomness = dict(seed=0)

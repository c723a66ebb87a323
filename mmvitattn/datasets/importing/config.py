"""Writes a config that trains on imported data, and says why its numbers are what they are."""

from pathlib import Path
from textwrap import fill

from ..layouts import IMAGE_SUFFIXES
from .recipe import (
    FROM_WEIGHTS,
    Backbone,
    Schedule,
    box_statistics,
    choose_anchors,
    picture_side,
    schedule,
)
from .records import OwnData
from .writing import mask_picture_suffix

NAMES = dict(detection='detector', segmentation='segmenter', classification='classifier')
DEVICES = dict(cpu='a CPU', cuda='a GPU')


def write_config(
    data: OwnData, folder: Path, root: str, configs: str, backbone: Backbone, device: str
) -> Path:
    """Writes ``detector.py``, ``segmenter.py`` or ``classifier.py``.

    Args:
        data: checked, and split into training and validation.
        folder: where to write.
        root: the folder as the config names it.
        configs: the folder of the base configs as the config names it.
        backbone: of the model.
        device: 'cpu' or 'cuda', for which batch, input and schedule are chosen.

    Returns:
        The file.
    """
    task = dict(detection=_detector, segmentation=_segmenter, classification=_classifier)
    path = folder / f'{NAMES[data.task]}.py'
    text = task[data.task](data, root.rstrip('/'), configs, backbone, device)
    path.write_text(text, encoding='utf-8')
    return path


def _comment(*paragraphs: str) -> str:
    def comment(text: str) -> str:
        return fill(
            text, 100, initial_indent='# ', subsequent_indent='#   ', break_on_hyphens=False
        )

    return '\n'.join(map(comment, paragraphs))


def _header(
    data: OwnData, device: str, plan: Schedule, backbone: Backbone, kind: str, *more: str
) -> str:
    train, val = (len(data.split(split)) for split in ('train', 'val'))
    classes = '1 class' if len(data.classes) == 1 else f'{len(data.classes)} classes'
    if backbone.weights:
        enough = (
            'which is often enough from pretrained weights. The backbone starts from those in the '
            f'package; with `tools/train.py ... --from-scratch` it does not, and '
            f'{1 / FROM_WEIGHTS:g} times as many epochs are needed.'
        )
    else:
        enough = (
            'which is what a model without pretrained weights needs at least. With a checkpoint '
            '(load_from), half of it is often enough.'
        )
    return _comment(
        f'{kind} for {classes}, {train} training and {val} validation pictures, '
        f'on {DEVICES[device]}. Written by tools/prepare_data.py import; edit it as you like.',
        *more,
        f'Batch {plan.batch} and {plan.epochs} epochs: {plan.steps} steps, about '
        f'{plan.epochs * train:,} pictures, {enough}',
        f'Learning rate {plan.learning_rate:g}: 2e-3 for a batch of 8, in proportion to the batch; '
        f'it rises over {plan.warm_up} steps and falls along a cosine.',
        f'Every {plan.interval} epochs the model is evaluated; the best checkpoint is kept as '
        'best_*.pth.',
        'Mean and standard deviation (in the base config) are those of ImageNet, with which the '
        'backbones are trained.',
    )


def _bases(configs: str, *names: str) -> str:
    return '\n'.join(['_base_ = [', *(f'    {f"{configs}/_base_/{n}.py"!r},' for n in names), ']'])


def _backbone(backbone: Backbone, out_indices: object) -> str:
    arguments = [
        *(f'type={backbone.type!r}', f'arch={backbone.arch!r}'),
        *(f'out_indices={out_indices!r}', 'drop_path_rate=0.0'),
    ]
    if backbone.weights:
        arguments.append(f"init_cfg=dict(type='Pretrained', checkpoint={backbone.weights!r})")
    return '\n'.join(['dict(', *(f'        {argument},' for argument in arguments), '    )'])


def _schedule(plan: Schedule, metric: str) -> str:
    return f"""\
max_epochs = {plan.epochs}
optim_wrapper = dict(
    optimizer=dict(lr={plan.learning_rate:g}, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={plan.warm_up}),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(
    _delete_=True, type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval={plan.interval}
)
auto_scale_lr = dict(base_batch_size={plan.batch})
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(
        by_epoch=True,
        interval={plan.interval},
        max_keep_ckpts=1,
        save_best={metric!r},
        rule='greater',
    ),
)
randomness = dict(seed=0)
"""


def _detector(data: OwnData, root: str, configs: str, backbone: Backbone, device: str) -> str:
    boxes = box_statistics(data, device)
    first = max(0, len(backbone.strides) - 3)  # three outputs
    strides = backbone.strides[first:]
    anchors = choose_anchors(boxes, strides)
    plan = schedule(data, device, boxes.side, bool(backbone.weights))
    width, convs = (64, 2) if device == 'cpu' else (256, 4)
    header = _header(
        data,
        device,
        plan,
        backbone,
        'A RetinaNet',
        f'Input {boxes.side} pixels (longer side): nine of ten training objects are then at least '
        f'{boxes.clear:g} pixels large (square root of the area).',
        f'Anchors from {anchors.smallest:g} to {anchors.largest:g} pixels on the strides '
        f'{", ".join(map(str, anchors.strides))}: from 5 to 95 % of the objects are '
        f'{boxes.small:g} to {boxes.large:g} pixels large, and height / width is mostly '
        f'{" to ".join(f"{r:g}" for r in sorted({boxes.ratios[0], boxes.ratios[-1]}))}.',
        f'Head: {convs} convolutions of {width} channels.',
        'Augmentation: other sizes, crops, colours and flips; leave out RandomFlip if left and '
        'right matter (text, traffic signs).',
    )
    bases = _bases(
        configs,
        'models/retinanet_fpn',
        'datasets/coco_detection',
        'schedules/adamw_1x_coco',
        'detection_runtime',
    )
    divisor = anchors.strides[-1] if anchors.strides[-1] <= 64 else 32
    return f"""{header}
{bases}
data_layout = None
data_root = {root + '/'!r}
metainfo = dict(classes={tuple(data.classes)!r})
image_scale = ({boxes.side}, {boxes.side})
model = dict(
    data_preprocessor=dict(pad_size_divisor={max(divisor, 32)}),
    backbone={_backbone(backbone, tuple(range(first, len(backbone.strides))))},
    neck=dict(
        in_channels={list(backbone.channels[first:])!r},
        out_channels={width},
        num_outs={len(anchors.strides)},
    ),
    bbox_head=dict(
        num_classes={len(data.classes)},
        in_channels={width},
        feat_channels={width},
        stacked_convs={convs},
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(
            octave_base_scale={anchors.base_scale:g},
            ratios={list(boxes.ratios)!r},
            strides={list(anchors.strides)!r},
        ),
        reg_decoded_bbox=True,
        init_cfg=dict(
            _delete_=True,
            type='Normal',
            layer='Conv2d',
            std=0.01,
            override=dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01),
        ),
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.7, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=image_scale, allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys={_META!r}),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=image_scale, keep_ratio=True)],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='PackDetInputs', meta_keys={(*_META, 'flip', 'flip_direction')!r})],
        ],
    ),
]
train_dataloader = dict(
    batch_size={plan.batch},
    num_workers={plan.workers},
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=False, min_size=0),  # pictures without objects are used
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers={plan.workers},
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
{_schedule(plan, 'coco/bbox_mAP')}{_EMA}
"""


_EMA = (
    "custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.002, priority=49)]"
)
_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')


def _segmenter(data: OwnData, root: str, configs: str, backbone: Backbone, device: str) -> str:
    side = picture_side(data, device)
    plan = schedule(data, device, side, bool(backbone.weights))
    width = 64 if device == 'cpu' else 256
    levels = len(backbone.strides)
    header = _header(
        data,
        device,
        plan,
        backbone,
        'A Semantic FPN',
        f'Crops of {side} x {side} pixels for training, and a shorter side of {side} pixels for '
        'evaluation: the median shorter side of the pictures, rounded down to a size that fits the '
        'device.',
        f'Head: {width} channels. In the masks, 0 is ignored and 1 is the first class.',
        'Augmentation: other sizes, crops, colours and flips; leave out RandomFlip if left and '
        'right matter.',
    )
    bases = _bases(
        configs,
        'models/semantic_fpn',
        'datasets/ade20k_512',
        'schedules/adamw_40k_ade20k',
        'segmentation_runtime',
    )
    return f"""{header}
{bases}
data_layout = None
data_root = {root!r}
metainfo = dict(classes={tuple(data.classes)!r})
crop_size = ({side}, {side})
image_scale = ({side * 8}, {side})  # shorter side {side}
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone={_backbone(backbone, tuple(range(levels)))},
    neck=dict(in_channels={list(backbone.channels)!r}, out_channels={width}, num_outs={levels}),
    decode_head=dict(
        in_channels={[width] * levels!r},
        in_index={list(range(levels))!r},
        feature_strides={list(backbone.strides)!r},
        channels={width},
        num_classes={len(data.classes)},
        init_cfg=dict(_delete_=True, type='Normal', std=0.01, override=dict(name='conv_seg')),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=image_scale, keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', reduce_zero_label=True)],
            [dict(type='PackSegInputs')],
        ],
    ),
]
pictures = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix={mask_picture_suffix(data)!r},
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size={plan.batch},
    num_workers={plan.workers},
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pictures, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers={plan.workers}, dataset=dict(pictures, pipeline=test_pipeline))
test_dataloader = val_dataloader
{_schedule(plan, 'mIoU')}log_processor = dict(by_epoch=True)
"""


def _classifier(data: OwnData, root: str, configs: str, backbone: Backbone, device: str) -> str:
    side = picture_side(data, device)
    plan = schedule(data, device, side, bool(backbone.weights))
    header = _header(
        data,
        device,
        plan,
        backbone,
        'A classifier',
        f'Input {side} x {side} pixels: the median shorter side of the pictures, rounded down to a '
        'size that fits the device. Evaluation uses the centre of the picture.',
        'Augmentation: crops of 30 to 100 % of the area, colours and flips; leave out RandomFlip '
        'if left and right matter.',
    )
    bases = _bases(
        configs,
        'models/classifier',
        'datasets/imagenet_224_deit',
        'schedules/adamw_300e_in1k',
        'classification_runtime',
    )
    return f"""{header}
{bases}
data_layout = None
data_root = {root!r}
metainfo = dict(classes={tuple(data.classes)!r})  # in the order of the folders
data_preprocessor = dict(num_classes={len(data.classes)})
model = dict(
    backbone={_backbone(backbone, -1)},
    head=dict(num_classes={len(data.classes)}, in_channels={backbone.channels[-1]}, topk=(1,)),
    train_cfg=dict(augments=None),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale={side}, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={round(side * 1.14)}, edge='short'),
    dict(type='CenterCrop', crop_size={side}),
    dict(type='PackInputs'),
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]  # flips and packs
folder = dict(
    _delete_=True,
    type='CustomDataset',
    data_root=data_root,
    metainfo=metainfo,
    extensions={tuple(sorted(IMAGE_SUFFIXES))!r},
)
train_dataloader = dict(
    batch_size={plan.batch},
    num_workers={plan.workers},
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(folder, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size={plan.batch},
    num_workers={plan.workers},
    dataset=dict(folder, data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
{_schedule(plan, 'accuracy/top1')}"""

# COCO 2017 boxes with DETR's augmentation: several scales, with probability 1/2 of a random crop.
_base_ = ['./coco_detection.py']
scaling = dict(type='RandomChoiceResize', keep_ratio=True)
resize = dict(scaling, scales=[(side, 1333) for side in range(480, 801, 32)])
crop = [
    dict(scaling, scales=[(side, 1333) for side in (400, 500, 600)]),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [*crop, resize]]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

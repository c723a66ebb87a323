# LinGlo-b0 at 64 x 64 pixels on the same 2,000 real pictures. It starts from the weights in the
# package; with `tools/train.py ... --from-scratch` it does not.
_base_ = './sag_cifar_tiny_cifar10_folder.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvitattn.LinGlo',
        arch='b0',
        out_indices=-1,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='mmvitattn://linglo-b0_tiny-imagenet'),
    ),
    head=dict(in_channels=256),
)
# As in the training of the weights: ImageNet's.
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
resize = dict(type='Resize', scale=64, backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='RandomCrop', crop_size=64, padding=8),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

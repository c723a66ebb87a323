# The embedded data set's masks: shapes and background textures; 0 in a mask is ignored.
_base_ = ['./ade20k_512.py']
data_layout = 'shapes'  # of tools/prepare_data.py
dataset_type = 'BaseSegDataset'
data_root = 'data/shapes/ade/ADEChallengeData2016'
metainfo = dict(
    classes=(
        *('circle', 'cross', 'rectangle', 'ring', 'star', 'triangle'),
        *('bricks', 'checks', 'clouds', 'dots', 'gradient', 'stripes'),
    ),
    palette=[
        *([220, 50, 47], [38, 110, 210], [60, 160, 60]),
        *([240, 150, 20], [140, 70, 190], [20, 170, 180]),
        *([235, 200, 185], [190, 205, 235], [225, 235, 245]),
        *([215, 225, 180], [240, 230, 190], [205, 190, 215]),
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(
        type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']
    ),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=_base_.tta_pipeline[1].transforms[1:]),  # no scales
]
pictures = dict(type=dataset_type, data_root=data_root, metainfo=metainfo, reduce_zero_label=True)
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(pictures, pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pictures, pipeline=test_pipeline))
test_dataloader = val_dataloader

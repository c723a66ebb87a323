_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_224_deit.py',
    '../_base_/schedules/adamw_100e_in1k.py',
    '../_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmvitattn.LinGlo', arch='b0', out_indices=-1),
    head=dict(in_channels=256),
)

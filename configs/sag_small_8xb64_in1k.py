_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_224_sag.py',
    '_base_/schedules/adamw_300e_in1k_sag.py',
    '_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmvitattn.SAGViT', arch='small', out_indices=-1),
    head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=64)

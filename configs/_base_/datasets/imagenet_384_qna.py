# ImageNet-1K at 384 x 384 as the release of QnA reads it (configs/imagenet_qna_finetune.py, lines
# 29 and 60-84): the augmentation of 224. Tests take the centre 384 / (384 + 32) of the shorter side
# (data/imagenet_utils.py, lines 5 and 102).
_base_ = ['./imagenet_224_qna.py']
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'),
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='ResizeEdge', scale=416, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_224_qna.py',
    '_base_/schedules/adamw_300e_in1k_qna.py',
    '_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmvitattn.QnAViT', arch='tiny', out_indices=-1),
    head=dict(in_channels=512),
)

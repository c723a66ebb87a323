# The release's fine-tuning at 384 x 384 (configs/imagenet_qna_finetune.py), from the classifier's
# weights. The release has no windows for this size: its 7 and 14 do not divide maps of 12 and 24
# positions, and it refuses them. Ours cover the same part of the image as at 224; the tables are
# resized when they are loaded, as in the release (utils.py, line 7).
_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_384_qna.py',
    '_base_/schedules/adamw_30e_in1k_qna.py',
    '_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.QnAViT', arch='base', out_indices=-1, window_sizes=(12, 12, 24, 12)
    ),
    head=dict(in_channels=768),
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/qna-vit-base_in1k.pth'),
)

# Not in the paper: mmdet's Mask2Former for instances and its recipe
# (mask2former_r50_8xb2-lsj-50e_coco.py).
_base_ = [
    '_base_/models/mask2former.py',
    '_base_/datasets/coco_instance_lsj.py',
    '_base_/schedules/adamw_50e_coco_mask2former.py',
    '_base_/detection_runtime_iterations.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.QnAViT',
        arch='tiny',
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/qna-vit-tiny_in1k.pth', prefix='backbone.'
        ),
    ),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)

# Not in the paper: mmdet's Cascade Mask R-CNN (cascade-mask-rcnn_r50_fpn_1x_coco.py), with its
# recipe for Mask R-CNN with Swin.
_base_ = [
    '_base_/models/cascade_mask_rcnn_fpn.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x_coco_mask_rcnn.py',
    '_base_/detection_runtime.py',
]
roi_extractor = dict(featmap_strides=[4, 8, 16])
model = dict(
    backbone=dict(
        type='mmvitattn.SAGViT',
        arch='small',
        kv_pools=(4, 2, 1),  # not in the paper: faster global attention for large images
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/sag-small_in1k.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[64, 192, 384]),
    roi_head=dict(bbox_roi_extractor=roi_extractor, mask_roi_extractor=roi_extractor),
)

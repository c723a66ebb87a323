# COCO 2017 boxes with mmdet's augmentation for DINO: DETR's, whose images to crop may be longer;
# images without boxes are used, too.
_base_ = ['./coco_detection_detr.py']
train_pipeline = _base_.train_pipeline
train_pipeline[3]['transforms'][1][0]['scales'] = [(side, 4200) for side in (400, 500, 600)]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline)
)

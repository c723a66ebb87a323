# Cascade Mask R-CNN with FPN as in mmdet (cascade-mask-rcnn_r50_fpn.py); a config adds the backbone
# and neck.in_channels.
_base_ = ['./mask_rcnn_fpn.py']
bbox_head = _base_.model.roi_head.bbox_head
bbox_head.update(
    reg_class_agnostic=True, loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)
)
stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
rcnn = _base_.model.train_cfg.rcnn
model = dict(
    type='CascadeRCNN',
    rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0)),
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(bbox_head, bbox_coder=dict(bbox_head.bbox_coder, target_stds=std)) for std in stds
        ],
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            dict(
                rcnn,
                assigner=dict(
                    rcnn.assigner,
                    match_low_quality=False,
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                ),
            )
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
)
del bbox_head, rcnn, stds

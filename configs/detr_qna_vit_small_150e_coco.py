# DETR by mmdet's recipe, see detr_qna_vit_tiny_150e_coco.py.
_base_ = './detr_qna_vit_tiny_150e_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/qna-vit-small_in1k.pth')),
)

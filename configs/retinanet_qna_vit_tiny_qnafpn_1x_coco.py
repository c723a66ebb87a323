# The pyramid's top-down path up-samples with learned queries; everything else is as with FPN.
_base_ = ['retinanet_qna_vit_tiny_fpn_1x_coco.py']
model = dict(neck=dict(type='mmvitattn.QnAFPN'))

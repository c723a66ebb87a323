# The pyramid's top-down path up-samples with learned queries; everything else is as with FPN.
_base_ = ['semfpn_qna_vit_tiny_40k_ade20k.py']
model = dict(neck=dict(type='mmvitattn.QnAFPN'))

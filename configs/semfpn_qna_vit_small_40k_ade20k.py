_base_ = './semfpn_qna_vit_tiny_40k_ade20k.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/qna-vit-small_in1k.pth')),
)

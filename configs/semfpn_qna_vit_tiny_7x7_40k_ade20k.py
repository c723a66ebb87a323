_base_ = './semfpn_qna_vit_tiny_40k_ade20k.py'
model = dict(
    backbone=dict(
        arch='tiny_7x7', init_cfg=dict(checkpoint='checkpoints/qna-vit-tiny-7x7_in1k.pth')
    ),
)

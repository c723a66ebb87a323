_base_ = './semfpn_linglo_b2_40k_ade20k.py'
model = dict(backbone=dict(arch='b1', init_cfg=dict(checkpoint='checkpoints/linglo-b1_in1k.pth')))

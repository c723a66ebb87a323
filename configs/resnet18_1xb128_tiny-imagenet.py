# A baseline of LinGlo-b0 on Tiny-ImageNet: mmpretrain's ResNet-18 with the same recipe. Nothing in
# the model is from mmvitattn.
_base_ = './linglo_b0_1xb128_tiny-imagenet.py'
model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18), head=dict(in_channels=512))

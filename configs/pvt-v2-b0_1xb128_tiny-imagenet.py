# The baseline of LinGlo-b0 on Tiny-ImageNet: timm's PVTv2-B0 with the same recipe. Nothing in the
# model is from mmvitattn.
_base_ = './linglo_b0_1xb128_tiny-imagenet.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='pvt_v2_b0',
        features_only=True,
        out_indices=(3,),
    )
)

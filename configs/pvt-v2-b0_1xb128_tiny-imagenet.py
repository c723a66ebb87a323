# The baseline of LinGlo-b0 on Tiny-ImageNet: mmdet's PVTv2-B0 with the same recipe. Nothing in the
# model is from mmvitattn.
_base_ = './linglo_b0_1xb128_tiny-imagenet.py'
custom_imports = dict(imports=['mmvitattn', 'mmdet.models'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        out_indices=(3,),
        drop_path_rate=0.0,
    )
)

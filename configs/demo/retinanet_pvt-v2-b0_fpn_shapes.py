# A peer of the demo: mmdet's PVTv2-B0 in place of LinGlo-b0, all else the same.
_base_ = ['./retinanet_linglo_b0_fpn_shapes.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
    )
)

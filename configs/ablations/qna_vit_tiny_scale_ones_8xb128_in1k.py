_base_ = '../qna_vit_tiny_8xb128_in1k.py'
model = dict(backbone=dict(attention_scale='ones'))
optim_wrapper = dict(  # decays in the release: layers/qna.py, line 133, names it attn_scale_pos
    paramwise_cfg=dict(custom_keys={'.attention_scale': dict(decay_mult=1.0)}),
)

_base_ = '../qna_vit_tiny_8xb128_in1k.py'
model = dict(backbone=dict(attention_scale='ones'))
optim_wrapper = dict(  # the release decays the scale that starts at one
    paramwise_cfg=dict(custom_keys=dict(attention_scale=dict(decay_mult=1.0))),
)

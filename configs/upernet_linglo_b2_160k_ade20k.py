# Not in the paper: mmseg's UPerNet, with its recipe for ConvNeXt: a learning rate
# for each layer.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k_512.py',
    '_base_/schedules/adamw_160k_ade20k.py',
    '_base_/segmentation_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmvitattn.LinGlo',
        arch='b2',
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/linglo-b2_in1k.pth', prefix='backbone.'
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    constructor='mmvitattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.95),  # mmseg: 0.9 a group of layers
)

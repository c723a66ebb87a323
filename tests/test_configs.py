"""Every config parses, states the paper's recipe, builds, and gives a loss and a prediction."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmvitattn.datasets import shapes
from mmvitattn.engine import preflight
from mmvitattn.models import LinGlo, QnAViT, SAGViT

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL = sorted([*CONFIGS.glob('*.py'), *CONFIGS.glob('demo/*.py')])


def name_of(path):
    return str(path.relative_to(CONFIGS).with_suffix(''))


def each(paths):
    return [pytest.param(path, id=name_of(path)) for path in paths]


def load(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    preflight.drop_pretrained(cfg)
    return cfg


def build(cfg):
    settings = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        settings.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(settings)
    model.init_weights()
    return model


def sample_for(task, cfg, height, width):
    """A data sample with ground truth, as the toolbox's pipeline packs it."""
    meta = dict(
        img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0
    )
    if task == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        sample = DetDataSample(metainfo=meta)
        boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 60.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3]))
    elif task == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=meta)
        classes = cfg.model.decode_head.num_classes
        mask = torch.from_numpy(np.random.default_rng(0).integers(0, classes, (1, height, width)))
        sample.gt_sem_seg = PixelData(data=mask)
    else:
        from mmpretrain.structures import DataSample

        sample = DataSample(metainfo=meta).set_gt_label(1)
    return sample


@pytest.mark.parametrize('path', each(ALL))
def test_loss_and_prediction(path):
    cfg = load(path)
    torch.manual_seed(0)
    model, task = build(cfg), cfg.default_scope
    height, width = (64, 96) if task == 'mmdet' else (64, 64)
    if task == 'mmseg':
        model.data_preprocessor.size = (height, width)
    data = dict(
        inputs=[torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(2)],
        data_samples=[sample_for(task, cfg, height, width) for _ in range(2)],
    )
    if task == 'mmpretrain':
        data['inputs'] = torch.stack(data['inputs'])
    model.train()
    losses = model(**model.data_preprocessor(copy.deepcopy(data), training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        # distributed training refuses parameters that no loss reaches
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.eval()
    with torch.no_grad():
        batch = model.data_preprocessor(copy.deepcopy(data), training=False)
        predictions = model(**batch, mode='predict')
    assert len(predictions) == 2


@pytest.mark.parametrize('path', each(CONFIGS.glob('*.py')))
def test_published_configs_are_short_deltas(path):
    assert len(path.read_text().splitlines()) <= 30
    cfg = Config.fromfile(path)
    assert {'train_dataloader', 'train_cfg', 'optim_wrapper', 'data_layout'} <= set(cfg.keys())
    assert cfg.default_scope in ('mmdet', 'mmseg', 'mmpretrain')


@pytest.mark.parametrize('path', each(ALL))
def test_auto_scale_lr_knows_the_batch(path):
    cfg = Config.fromfile(path)
    processes = 1 if path.parent.name == 'demo' else 8
    assert cfg.auto_scale_lr.base_batch_size == processes * cfg.train_dataloader.batch_size


def test_new_layers_start_from_xavier():
    cfg = load(CONFIGS / 'retinanet_linglo_b0_fpn_1x_coco.py')
    head = build(cfg).bbox_head
    weight = head.cls_convs[0].conv.weight
    bound = (6 / (2 * 256 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert head.retina_cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.retina_cls.bias.sigmoid().mean().item() == pytest.approx(0.01, rel=1e-3)
    cfg = load(CONFIGS / 'semfpn_linglo_b0_40k_ade20k.py')
    weight = build(cfg).decode_head.scale_heads[0][0].conv.weight
    bound = (6 / (9 * (256 + 128))) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)


def no_decay(cfg):
    options = cfg.optim_wrapper.paramwise_cfg
    return {key for key, value in options.custom_keys.items() if value['decay_mult'] == 0} | {
        name for name in ('norm', 'bias') if options[f'{name}_decay_mult'] == 0
    }


@pytest.mark.parametrize('arch', LinGlo.arch_zoo)
def test_linglo_coco_recipe(arch):
    """Paper, section 4.2, and PVT's weight decay."""
    cfg = Config.fromfile(CONFIGS / f'retinanet_linglo_{arch}_fpn_1x_coco.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 1e-4)
    assert cfg.train_cfg.max_epochs == 12
    decay = cfg.param_scheduler[-1]
    assert (decay.type, decay.milestones, decay.gamma) == ('MultiStepLR', [8, 11], 0.1)
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    assert cfg.train_pipeline[2].scale == cfg.test_pipeline[1].scale == (1333, 800)
    weights = cfg.model.backbone.init_cfg
    assert weights.checkpoint == f'checkpoints/linglo-{arch}_in1k.pth'
    assert weights.prefix == 'backbone.' and cfg.model.backbone.arch == arch
    assert {'norm', 'bias', 'saliency'} <= no_decay(cfg)


@pytest.mark.parametrize('arch', LinGlo.arch_zoo)
def test_linglo_ade20k_recipe(arch):
    """Paper, section 4.3, and PVT's weight decay."""
    cfg = Config.fromfile(CONFIGS / f'semfpn_linglo_{arch}_40k_ade20k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 1e-4)
    assert cfg.train_cfg.max_iters == 40_000
    (decay,) = cfg.param_scheduler
    assert (decay.type, decay.power, decay.end) == ('PolyLR', 0.9, 40_000)
    assert cfg.auto_scale_lr.base_batch_size == 32 == 8 * cfg.train_dataloader.batch_size
    assert cfg.crop_size == (512, 512) == cfg.model.data_preprocessor.size
    assert min(cfg.test_pipeline[1].scale) == 512
    assert cfg.model.decode_head.num_classes == 150
    assert cfg.model.backbone.init_cfg.checkpoint == f'checkpoints/linglo-{arch}_in1k.pth'
    assert {'norm', 'bias', 'saliency'} <= no_decay(cfg)


@pytest.mark.parametrize('arch', LinGlo.arch_zoo)
def test_linglo_imagenet_recipe(arch):
    """Paper, section 4.1, with DeiT's augmentation."""
    cfg = Config.fromfile(CONFIGS / f'linglo_{arch}_8xb128_in1k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 0.05)
    assert cfg.auto_scale_lr.base_batch_size == 1024 == 8 * cfg.train_dataloader.batch_size
    assert cfg.train_cfg.max_epochs == 300
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 5)
    assert (cosine.type, cosine.begin, cosine.end) == ('CosineAnnealingLR', 5, 300)
    steps = {step.type: step for step in cfg.train_pipeline}
    assert steps['RandomResizedCrop'].scale == 224
    randaugment = steps['RandAugment']
    assert (randaugment.magnitude_level, randaugment.magnitude_std) == (9, 0.5)
    assert steps['RandomErasing'].erase_prob == 0.25
    assert cfg.train_dataloader.sampler == dict(
        type='RepeatAugSampler', num_repeats=3, shuffle=True
    )
    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.type, mixup.alpha, cutmix.type, cutmix.alpha) == ('Mixup', 0.8, 'CutMix', 1.0)
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert {'norm', 'bias', 'saliency'} <= no_decay(cfg)


@pytest.mark.parametrize('arch', QnAViT.arch_zoo)
def test_qna_vit_recipes(arch):
    """Recipe of the official release on ImageNet; LinGlo's dense recipes elsewhere (ours)."""
    cfg = Config.fromfile(CONFIGS / f'qna_vit_{arch}_8xb128_in1k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 5e-4, 0.05)
    assert list(cfg.optim_wrapper.paramwise_cfg) == ['custom_keys']  # norms and biases decay
    exempt = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert exempt == {k: dict(decay_mult=0.0) for k in ('position_bias', 'attention_scale')}
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.auto_scale_lr.base_batch_size == 1024 == 8 * cfg.train_dataloader.batch_size
    warm_up, cosine = cfg.param_scheduler
    epochs = 20 if arch == 'base' else 5
    assert warm_up.end == cosine.begin == epochs and warm_up.start_factor < 1e-5
    assert cfg.train_cfg.max_epochs == cosine.end == 300 and cosine.eta_min == 0
    steps = {step.type: step for step in cfg.train_pipeline}
    randaugment, jitter = steps['RandAugment'], steps['ColorJitter']
    assert (randaugment.num_policies, randaugment.magnitude_level) == (2, 9)
    assert randaugment.magnitude_std == 0.5
    assert jitter.brightness == jitter.contrast == jitter.saturation == 0.3
    assert steps['RandomErasing'].erase_prob == 0.25
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler'
    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.alpha, cutmix.alpha, cfg.model.head.loss.label_smooth_val) == (0.8, 1.0, 0.1)
    for dense in (f'retinanet_qna_vit_{arch}_fpn_1x_coco', f'semfpn_qna_vit_{arch}_40k_ade20k'):
        cfg = Config.fromfile(CONFIGS / f'{dense}.py')
        assert {'norm', 'bias', 'position_bias', 'attention_scale'} <= no_decay(cfg)
        weights = f'checkpoints/qna-vit-{arch.replace("_", "-")}_in1k.pth'
        assert cfg.model.backbone.init_cfg.checkpoint == weights


SAG_CLASSIFIERS = {  # arch: batch on each of 8 GPUs, classes
    'sag_tiny_8xb92_in1k': ('tiny', 92, 1000),
    'sag_small_8xb64_in1k': ('small', 64, 1000),
    **{
        f'sag_{size}_8xb{batch}_cifar{classes}': (f'cifar_{size}', batch, classes)
        for size, batch in (('tiny', 92), ('small', 40), ('base', 20))
        for classes in (10, 100)
    },
}


@pytest.mark.parametrize('name', SAG_CLASSIFIERS)
def test_sag_recipes(name):
    """Paper, section 4, and the official release's end points of the schedule."""
    arch, batch, classes = SAG_CLASSIFIERS[name]
    cfg, cifar = Config.fromfile(CONFIGS / f'{name}.py'), arch.startswith('cifar')
    scale = 8 * batch / 512
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.weight_decay) == ('AdamW', 0.05)
    assert optimizer.lr == pytest.approx(5e-4 * scale)
    assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch
    warm_up, cosine = cfg.param_scheduler
    start, end, epochs = (1e-6, 1e-5, 5) if cifar else (5e-7, 5e-6, 20)
    assert warm_up.start_factor * optimizer.lr == pytest.approx(start * scale)
    assert cosine.eta_min_ratio * optimizer.lr == pytest.approx(end * scale)
    assert warm_up.end == cosine.begin == epochs and cfg.train_cfg.max_epochs == 300
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert (steps['RandAugment'].magnitude_level, steps['RandAugment'].magnitude_std) == (9, 0.5)
    assert steps['ColorJitter'].brightness == 0.4 and steps['RandomErasing'].erase_prob == 0.25
    assert 'RandomCrop' in steps if cifar else steps['RandomResizedCrop'].interpolation == 'bicubic'
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler'  # no repeated augmentation
    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.alpha, cutmix.alpha, cfg.model.head.loss.label_smooth_val) == (0.8, 1.0, 0.1)
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert cfg.train_dataloader.dataset.type == (f'CIFAR{classes}' if cifar else 'ImageNet')
    assert {'norm', 'bias', 'position.table'} <= no_decay(cfg)
    assert cfg.model.backbone.arch == arch


@pytest.mark.parametrize('arch', ['tiny', 'small'])
def test_sag_dense_configs_fit_the_strides(arch):
    model = SAGViT(arch)
    detector = Config.fromfile(CONFIGS / f'retinanet_sag_{arch}_fpn_1x_coco.py')
    strides = detector.model.bbox_head.anchor_generator.strides
    assert strides[: len(model.stages)] == model.feature_info.reduction()
    assert all(b == 2 * a for a, b in zip(strides, strides[1:], strict=False))
    segmenter = Config.fromfile(CONFIGS / f'semfpn_sag_{arch}_40k_ade20k.py')
    assert segmenter.model.decode_head.feature_strides == model.feature_info.reduction()
    for cfg in (detector, segmenter):
        assert cfg.model.neck.in_channels == model.feature_info.channels()
        assert {'norm', 'bias', 'position.table'} <= no_decay(cfg)


@pytest.mark.parametrize(
    ('model', 'exempt'),
    [
        (LinGlo('b0'), ['saliency']),
        (QnAViT('tiny'), ['position_bias', 'attention_scale']),
        (SAGViT('tiny'), ['position.table']),
    ],
    ids=['LinGlo', 'QnAViT', 'SAGViT'],
)
def test_exempt_names_exist(model, exempt):
    names = [name for name, _ in model.named_parameters()]
    assert all(any(part in name for name in names) for part in exempt)


def test_demo_classes_are_those_of_the_embedded_data_set():
    detection = Config.fromfile(CONFIGS / '_base_/datasets/shapes_detection.py')
    assert tuple(detection.metainfo.classes) == shapes.SHAPE_CLASSES
    segmentation = Config.fromfile(CONFIGS / '_base_/datasets/shapes_segmentation.py')
    assert tuple(segmentation.metainfo.classes) == shapes.SEGMENTATION_CLASSES
    palette = tuple(tuple(colour) for colour in segmentation.metainfo.palette)
    assert palette == tuple(tuple(colour) for colour in shapes.SEGMENTATION_PALETTE)

"""Every config trains as ``data/recipes.json`` says, fact by fact.

The file names the source of each fact. A pattern holds for the configs whose name it matches, a
list of patterns with commas for those that one of them does; where several entries match, their
facts add up and must not overlap. A config has the facts of its task, all of them, and no others.
"""

import fnmatch
import json
import math
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvitattn.models import LinGlo, QnAViT, SAGViT

ROOT = Path(__file__).resolve().parents[1]
RECIPES = json.loads((ROOT / 'tests/data/recipes.json').read_text())['recipes']
CONFIGS = ROOT / 'configs'
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for pattern in ('*.py', 'ablations/*.py')
    for path in CONFIGS.glob(pattern)
)
GPUS = 8
BACKBONES = {cls.__name__: cls for cls in (LinGlo, QnAViT, SAGViT)}


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(', '))


def expected_facts(name):
    facts = {}
    for pattern, sources in RECIPES.items():
        if not matches(name, pattern):
            continue
        for source, stated in sources.items():
            twice = set(facts) & set(stated)
            assert not twice, f'{pattern}, {source}: {twice} stated twice for {name}'
            facts.update(stated)
    return facts


def number(value):
    """Six digits: rates are products of others."""
    return float(f'{value:.6g}')


def facts_of(cfg):
    """What ``recipes.json`` has to say of a config."""
    task = {'mmpretrain': classification, 'mmdet': detection, 'mmseg': segmentation}
    return {
        **optimizer(cfg),
        **schedule(cfg),
        **regularisation(cfg),
        **task[cfg.default_scope](cfg),
    }


def optimizer(cfg):
    wrapper, settings = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    options = wrapper.get('paramwise_cfg', {})
    keys = options.get('custom_keys', {})
    exempt = {key for key, value in keys.items() if value.get('decay_mult', 1) == 0}
    exempt |= {key for key in ('norm', 'bias') if options.get(f'{key}_decay_mult') == 0}
    factors = {key: value.lr_mult for key, value in keys.items() if 'lr_mult' in value}
    own = BACKBONES[cfg.model.backbone.type.split('.')[1]].no_decay_keys
    if wrapper.get('constructor'):
        exempt, factors = {'norm', 'bias', *own}, {'each layer': options.decay_rate}
    clip = wrapper.get('clip_grad') or {}
    return dict(
        optimizer=settings.type,
        lr=number(settings.lr),
        betas=list(settings.betas),
        weight_decay=settings.weight_decay,
        no_weight_decay=sorted(
            key.removeprefix('.')
            for key in exempt
            if key in ('norm', 'bias') or any(key in end for end in own)
        ),
        lr_factors=factors,
        clip_grad=clip.get('max_norm'),
        batch=GPUS * cfg.train_dataloader.batch_size,
    )


def schedule(cfg):
    """Warm-up and decay; rates in absolute numbers, lengths in the loop's units."""
    lr, loop = cfg.optim_wrapper.optimizer.lr, cfg.train_cfg
    length = loop.get('max_epochs') or loop.get('max_iters')
    steps = {step.type: step for step in cfg.param_scheduler}
    warm_up = steps.pop('LinearLR', None)
    (decay,) = steps.values()
    if decay.type == 'MultiStepLR':
        course = dict(type='steps', at=decay.milestones, factor=decay.gamma)
    else:
        assert decay.begin == (warm_up.end if warm_up and warm_up.end < length else 0)
        assert decay.end == length
        end = decay.get('eta_min', lr * decay.get('eta_min_ratio', 0))
        course = dict(type='cosine', to=number(end))
        if decay.type == 'PolyLR':
            course.update(type='polynomial', power=decay.power)
    start = None
    if warm_up:
        unit = 'epochs' if warm_up.by_epoch else 'iterations'
        start = {unit: warm_up.end, 'from': number(lr * warm_up.start_factor)}
    unit = 'epochs' if 'max_epochs' in loop else 'iterations'
    return {unit: length, 'warm_up': start, 'decay': course}


def regularisation(cfg):
    backbone = cfg.model.backbone
    arch = backbone.arch
    if isinstance(arch, str):
        arch = BACKBONES[backbone.type.split('.')[1]].arch_zoo[arch]
    return dict(
        drop_path=backbone.get('drop_path_rate', arch.get('drop_path_rate', 0.1)),
        ema=any(hook.type == 'EMAHook' for hook in cfg.get('custom_hooks', [])),
    )


def steps_of(pipeline):
    return {step.type: step for step in pipeline}


def classification(cfg):
    pipeline = cfg.train_dataloader.dataset.pipeline
    train, test = steps_of(pipeline), steps_of(cfg.test_dataloader.dataset.pipeline)
    augment, erasing = train['RandAugment'], train['RandomErasing']
    if 'RandomResizedCrop' in train:
        crop = dict(size=train['RandomResizedCrop'].scale, interpolation='bicubic')
        assert (
            train['RandomResizedCrop'].interpolation == augment.hparams.interpolation == 'bicubic'
        )
        test_size = dict(resize=test['ResizeEdge'].scale, crop=test['CenterCrop'].crop_size)
    else:
        crop, test_size = dict(size=32, padding=train['RandomCrop'].padding), None
    jitter = train.get('ColorJitter')
    if jitter:
        assert jitter.brightness == jitter.contrast == jitter.saturation
    mixup, cutmix = cfg.model.train_cfg.augments
    sampler, head = cfg.train_dataloader.sampler, cfg.model.head
    assert [mixup.type, cutmix.type] == ['Mixup', 'CutMix'] and sampler.shuffle
    assert (augment.policies, augment.total_level) == ('timm_increasing', 10)
    assert head.num_classes == cfg.data_preprocessor.num_classes
    return dict(
        data=[cfg.train_dataloader.dataset.type, head.num_classes],
        order=list(train),
        crop=crop,
        flip=train['RandomFlip'].prob,
        rand_augment=[augment.num_policies, augment.magnitude_level, augment.magnitude_std],
        colour_jitter=jitter and jitter.brightness,
        random_erasing=erasing.erase_prob,
        repeated_augmentation=sampler.get('num_repeats'),
        mixup=mixup.alpha,
        cutmix=cutmix.alpha,
        label_smoothing=head.loss.label_smooth_val,
        test=test_size,
    )


def dense(cfg):
    weights, backbone = cfg.model.backbone.init_cfg, cfg.model.backbone
    assert (weights.type, weights.prefix) == ('Pretrained', 'backbone.')
    assert backbone.get('frozen_stages', -1) == -1
    return dict(pretrained=weights.checkpoint)


def detection(cfg):
    pipeline = cfg.train_dataloader.dataset.pipeline
    train, test = steps_of(pipeline), steps_of(cfg.test_dataloader.dataset.pipeline)
    scales, crop = None, None
    if 'RandomChoice' in train:
        plain, cropped = train['RandomChoice'].transforms
        assert cropped[-1] == plain[0] and plain[0].keep_ratio
        scales = [list(scale) for scale in plain[0].scales]
        crop = [list(scale) for scale in cropped[0].scales], list(cropped[1].crop_size)
    elif train['Resize'].keep_ratio:
        scales = [list(train['Resize'].scale)]
    metrics = cfg.val_evaluator.metric
    return dict(
        **dense(cfg),
        head=cfg.model.type,
        order=list(train),
        scales=scales,
        crop=crop and list(crop),
        flip=train['RandomFlip'].prob,
        test=list(test['Resize'].scale),
        metrics=[metrics] if isinstance(metrics, str) else list(metrics),
    )


def segmentation(cfg):
    pipeline = cfg.train_dataloader.dataset.pipeline
    train, test = steps_of(pipeline), steps_of(cfg.test_dataloader.dataset.pipeline)
    resize, crop = train['RandomResize'], train['RandomCrop']
    assert crop.crop_size == cfg.crop_size == cfg.model.data_preprocessor.size
    return dict(
        **dense(cfg),
        head=cfg.model.decode_head.type,
        order=list(train),
        scales=[list(resize.scale), list(resize.ratio_range)],
        crop=[*crop.crop_size, crop.cat_max_ratio],
        flip=train['RandomFlip'].prob,
        test=list(test['Resize'].scale),
    )


@pytest.mark.parametrize('name', NAMES)
def test_config_follows_its_recipe(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    expected, facts = expected_facts(name), facts_of(cfg)
    assert set(facts) == set(expected), f'recipes.json says nothing, or too much, of {name}'
    different = {key: (facts[key], expected[key]) for key in facts if facts[key] != expected[key]}
    assert not different, f'{name}: (config, recipe)'


def test_every_pattern_is_of_use():
    unused = [p for p in RECIPES if not any(matches(name, p) for name in NAMES)]
    assert not unused


def test_facts_are_read_and_not_assumed():
    """A change of any setting changes a fact."""
    changes = {
        'optim_wrapper.optimizer.lr': 3e-4,
        'optim_wrapper.clip_grad': dict(max_norm=1.0),
        'train_dataloader.batch_size': 3,
        'param_scheduler.0.start_factor': 0.5,
        'custom_hooks': [dict(type='EMAHook')],
        'model.head.loss.label_smooth_val': 0.2,
        'model.backbone.drop_path_rate': 0.3,
        'train_dataloader.sampler.num_repeats': 2,
        'train_dataloader.dataset.pipeline.4.erase_prob': 0.1,
    }
    path = CONFIGS / 'linglo_b0_8xb128_in1k.py'
    facts = facts_of(Config.fromfile(path))
    for key, value in changes.items():
        cfg = Config.fromfile(path)
        cfg.merge_from_dict({key: value})
        assert facts_of(cfg) != facts, key


def test_lr_scales_with_the_batch_where_the_paper_says_so():
    for name in fnmatch.filter(NAMES, 'sag_*'):
        facts = expected_facts(name)
        assert math.isclose(facts['lr'], 5e-4 * facts['batch'] / 512, rel_tol=1e-5), name

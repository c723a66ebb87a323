"""Every config trains as ``data/recipes.json`` says, fact by fact.

The file names the source of each fact. A pattern holds for the configs whose name it matches, a
list of patterns with commas for those that one of them does; where several entries match, their
facts add up and must not overlap. A config has the facts of its task, all of them, and no others.
"""

import copy
import fnmatch
import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

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


def distinct_schedules():
    """A config for each schedule, batch and rate."""
    found = {}
    for name in NAMES:
        cfg = Config.fromfile(CONFIGS / f'{name}.py')
        key = (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg, cfg.param_scheduler)
        found.setdefault(repr(key), name)
    for name in sorted(found.values()):
        slow = 'ade20k' in name or 'mask2former' in name  # 40,000 steps and more
        yield pytest.param(name, marks=pytest.mark.slow if slow else ())


def number(value):
    """Six digits: rates are products of others."""
    return float(f'{value:.6g}')


def gpus_of(name):
    """The number in the name of a config, as 8 in ``8xb128``."""
    stated = re.search(r'_(\d+)xb\d', name)
    return int(stated[1]) if stated else GPUS


def facts_of(cfg, gpus=GPUS):
    """What ``recipes.json`` has to say of a config."""
    task = {'mmpretrain': classification, 'mmdet': detection, 'mmseg': segmentation}
    return {
        **optimizer(cfg, gpus),
        **schedule(cfg),
        **regularisation(cfg),
        **task[cfg.default_scope](cfg),
    }


def optimizer(cfg, gpus):
    wrapper, settings = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    clip = wrapper.get('clip_grad') or {}
    return dict(
        optimizer=settings.type,
        lr=number(settings.lr),
        betas=list(settings.betas),
        weight_decay=settings.weight_decay,
        clip_grad=clip.get('max_norm'),
        batch=gpus * cfg.train_dataloader.batch_size,
        **parameter_options(cfg),
    )


def parameter_options(cfg):
    """Kinds of parameters without weight decay, and factors of the rate, as the optimizer has them.

    A kind is 'norm' or the end of the parameter's name; all of a kind decay, or none.
    """
    init_default_scope(cfg.default_scope)
    settings, base = copy.deepcopy(cfg.model), cfg.optim_wrapper.optimizer
    settings.backbone.pop('init_cfg', None)
    if 'data_preprocessor' in cfg:
        settings.data_preprocessor = cfg.data_preprocessor
    # PVT and ResNet compute their rates of stochastic depth with tensors
    with torch.device('meta' if is_ours(settings.backbone) else 'cpu'):
        model = MODELS.build(settings)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    kinds, factors = {True: set(), False: set()}, {}
    for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups:
        assert group['weight_decay'] in (0, base.weight_decay)
        for parameter in group['params']:
            name = names.pop(id(parameter))
            kind = kind_of(model, name)
            if cfg.model.type == 'Mask2Former' and kind == 'norm' and name.startswith('backbone.'):
                kind = 'backbone norm'  # mmdet's recipe for ResNet-50 lets these decay
            kinds[group['weight_decay'] == 0].add(kind)
            factors.setdefault(name.split('.')[0], set()).add(number(group['lr'] / base.lr))
    assert not names, 'parameters that the optimizer lacks'
    assert not kinds[True] & kinds[False]
    rate = cfg.optim_wrapper.get('paramwise_cfg', {}).get('decay_rate')
    factors = {part: factor for part, (factor, *_) in factors.items() if factor != 1}
    return dict(
        kinds=kinds[True] | kinds[False],
        no_weight_decay=sorted(kinds[True]),
        lr_factors={'each layer': rate} if rate else factors,
    )


def kind_of(model, name):
    owner, _, last = name.rpartition('.')
    module = model.get_submodule(owner)
    if isinstance(module, nn.Embedding):
        return owner.rpartition('.')[2]
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    if isinstance(module, norms):
        return 'norm'
    return 'position.table' if last == 'table' else last


def schedule(cfg):
    """Warm-up and decay; rates in absolute numbers, lengths in the loop's units."""
    lr, loop = cfg.optim_wrapper.optimizer.lr, cfg.train_cfg
    length = loop.get('max_epochs') or loop.get('max_iters')
    steps = {step.type: step for step in cfg.param_scheduler}
    warm_up = steps.pop('LinearLR', None)
    (decay,) = steps.values() or [None]
    if decay is None:
        course = dict(type='constant')
    elif decay.type == 'MultiStepLR':
        course = dict(type='steps', at=decay.milestones, factor=decay.gamma)
    else:
        assert decay.end == length
        end = decay.get('eta_min', lr * decay.get('eta_min_ratio', 0))
        course = dict(type='cosine', to=number(end))
        if end > 0 and decay.get('convert_to_iter_based'):
            course['by'] = 'iterations'
        if warm_up and decay.begin == 0:
            course['over'] = 'all epochs'
        else:
            assert decay.begin == (warm_up.end if warm_up else 0)
        if decay.type == 'PolyLR':
            course.update(type='polynomial', power=decay.power)
    start = None
    if warm_up:
        unit = 'epochs' if warm_up.by_epoch else 'iterations'
        start = {unit: warm_up.end, 'from': number(lr * warm_up.start_factor)}
    unit = 'epochs' if 'max_epochs' in loop else 'iterations'
    return {unit: length, 'warm_up': start, 'decay': course}


def is_ours(backbone):
    """The others are baselines."""
    return backbone.type.startswith('mmvitattn.')


def regularisation(cfg):
    backbone = cfg.model.backbone
    drop_path = None
    if is_ours(backbone):
        arch = backbone.arch
        if isinstance(arch, str):
            arch = BACKBONES[backbone.type.split('.')[1]].arch_zoo[arch]
        drop_path = backbone.get('drop_path_rate', arch.get('drop_path_rate', 0.1))
    return dict(
        drop_path=drop_path,
        ema=any(hook.type == 'EMAHook' for hook in cfg.get('custom_hooks', [])),
    )


def steps_of(pipeline):
    return {step.type: step for step in pipeline}


def crop_sizes(train, test):
    """Of training and test."""
    if 'RandomResizedCrop' not in train:
        return dict(size=32, padding=train['RandomCrop'].padding), None
    cropping, augment = train['RandomResizedCrop'], train.get('RandAugment')
    assert cropping.interpolation == 'bicubic'
    assert augment is None or augment.hparams.interpolation == 'bicubic'
    crop = dict(size=cropping.scale, interpolation='bicubic')
    if 'crop_ratio_range' in cropping:
        crop['area'] = list(cropping.crop_ratio_range)
    if 'ResizeEdge' not in test:
        return crop, None
    return crop, dict(resize=test['ResizeEdge'].scale, crop=test['CenterCrop'].crop_size)


def classification(cfg):
    pipeline = cfg.train_dataloader.dataset.pipeline
    train, test = steps_of(pipeline), steps_of(cfg.test_dataloader.dataset.pipeline)
    augment, erasing = train.get('RandAugment'), train.get('RandomErasing')
    crop, test_size = crop_sizes(train, test)
    preprocessor = cfg.data_preprocessor
    # RandAugment and erasing fill with the mean, in the order of the pipeline's channels
    order = -1 if preprocessor.to_rgb else 1
    if augment:
        assert augment.hparams.pad_val == [round(value) for value in preprocessor.mean[::order]]
        assert (augment.policies, augment.total_level) == ('timm_increasing', 10)
    if erasing:
        assert erasing.fill_color == preprocessor.mean[::order]
        assert erasing.fill_std == preprocessor.std[::order]
    assert 'ColorJitter' not in train
    jitter = None
    if 'RandomApply' in train:
        jitter = {'prob': train['RandomApply'].prob, **train['RandomApply'].transforms}
        assert jitter.pop('type') == 'ColorJitter'
        jitter['grayscale'] = train['RandomGrayscale'].prob
    mixing = {mix.type: mix.alpha for mix in cfg.model.train_cfg.augments or ()}
    sampler, head = cfg.train_dataloader.sampler, cfg.model.head
    assert list(mixing) in (['Mixup', 'CutMix'], []) and sampler.shuffle
    assert head.num_classes == cfg.data_preprocessor.num_classes
    return dict(
        data=[cfg.train_dataloader.dataset.type, head.num_classes],
        mean=[number(value / 255) for value in preprocessor.mean],
        std=[number(value / 255) for value in preprocessor.std],
        order=list(train),
        crop=crop,
        flip=train['RandomFlip'].prob,
        rand_augment=augment
        and [augment.num_policies, augment.magnitude_level, augment.magnitude_std],
        colour_jitter=jitter,
        random_erasing=erasing and erasing.erase_prob,
        repeated_augmentation=sampler.get('num_repeats'),
        mixup=mixing.get('Mixup'),
        cutmix=mixing.get('CutMix'),
        label_smoothing=head.loss.label_smooth_val,
        test=test_size,
        pretrained=(cfg.model.get('init_cfg') or {}).get('checkpoint'),
    )


def dense(cfg):
    weights, backbone = cfg.model.backbone.init_cfg, cfg.model.backbone
    assert weights.type == 'Pretrained'
    if is_ours(backbone):
        assert weights.prefix == 'backbone.' and backbone.get('frozen_stages', -1) == -1
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
    elif 'RandomResize' in train:
        resize = train['RandomResize']
        scales = [list(resize.scale), list(resize.ratio_range)]
        crop = [list(train['RandomCrop'].crop_size)]
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
        sync_bn=cfg.get('sync_bn'),
        order=list(train),
        scales=[list(resize.scale), list(resize.ratio_range)],
        crop=[*crop.crop_size, crop.cat_max_ratio],
        flip=train['RandomFlip'].prob,
        test=list(test['Resize'].scale),
    )


@pytest.mark.parametrize('name', NAMES)
def test_config_follows_its_recipe(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    expected, facts = expected_facts(name), facts_of(cfg, gpus_of(name))
    kinds = facts.pop('kinds')
    assert set(facts) == set(expected), f'recipes.json says nothing, or too much, of {name}'
    # a rule holds for the parameters that this model has
    expected['no_weight_decay'] = sorted(kinds.intersection(expected['no_weight_decay']))
    different = {key: (facts[key], expected[key]) for key in facts if facts[key] != expected[key]}
    assert not different, f'{name}: (config, recipe)'


def test_every_pattern_is_of_use():
    unused = [p for p in RECIPES if not any(matches(name, p) for name in NAMES)]
    assert not unused


def test_facts_are_read_and_not_assumed():
    """A change of any setting changes a fact."""
    changes = {
        'optim_wrapper.optimizer.lr': 3e-4,
        'optim_wrapper.paramwise_cfg': dict(bias_decay_mult=1.0),
        'optim_wrapper.clip_grad': dict(max_norm=1.0),
        'train_dataloader.batch_size': 3,
        'param_scheduler.0.start_factor': 0.5,
        'custom_hooks': [dict(type='EMAHook')],
        'model.head.loss.label_smooth_val': 0.2,
        'model.backbone.drop_path_rate': 0.3,
        'train_dataloader.sampler.num_repeats': 2,
        'train_dataloader.dataset.pipeline.4.erase_prob': 0.1,
        'model.init_cfg': dict(type='Pretrained', checkpoint='file.pth'),
    }
    path = CONFIGS / 'linglo_b0_8xb128_in1k.py'
    facts = facts_of(Config.fromfile(path))
    for key, value in changes.items():
        cfg = Config.fromfile(path)
        cfg.merge_from_dict({key: value})
        assert facts_of(cfg) != facts, key


def test_lr_scales_with_the_batch_where_the_source_says_so():
    rates = {'sag_*': 5e-4 / 512, 'qna_*_in1k': 5e-4 / 256, 'qna_*-ft-*': 1e-5 / 256}
    for pattern, per_batch in rates.items():
        for name in fnmatch.filter(NAMES, pattern):
            facts = expected_facts(name)
            assert math.isclose(facts['lr'], per_batch * facts['batch'], rel_tol=1e-5), name


class Idle(BaseModel):
    """Takes down the learning rate of each step."""

    def __init__(self):
        super().__init__()
        self.weight, self.rates = nn.Parameter(torch.zeros(1)), []

    def train_step(self, data, optim_wrapper):
        self.rates.append(optim_wrapper.param_groups[0]['lr'])
        return {}

    forward = None


def rates_of_runner(cfg, work_dir, epoch):
    """The learning rates of a run whose epochs have a few iterations."""
    idle, off = Idle(), ('timer', 'logger', 'checkpoint', 'sampler_seed', 'runtime_info')
    loader = dict(
        dataset=list(range(epoch)),
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    Runner(
        model=idle,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg={**cfg.train_cfg, 'val_interval': 10**9},
        optim_wrapper=dict(optimizer=cfg.optim_wrapper.optimizer),  # without factors for parts
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict.fromkeys(off),
        default_scope=cfg.default_scope,
        experiment_name=f'{work_dir.name}_rates',
        log_level='ERROR',
    ).train()
    return idle.rates


def rate_of_source(facts, step, epoch):
    """The formula of a recipe's source.

    optax counts iterations and timm epochs; MMEngine's warm-up counts iterations and reaches the
    full rate in its last one, where theirs does one later.
    """
    lr, warm_up, decay = facts['lr'], facts['warm_up'] or {}, facts['decay']
    first = warm_up.get('iterations', warm_up.get('epochs', 0) * epoch)
    if step < first:
        return warm_up['from'] + (lr - warm_up['from']) * step / (first - 1)
    if decay['type'] == 'constant':
        return lr
    if decay['type'] == 'steps':
        unit = 1 if 'iterations' in facts else epoch
        return lr * decay['factor'] ** sum(step >= at * unit for at in decay['at'])
    last = facts.get('iterations', facts.get('epochs', 0) * epoch)
    if decay['type'] == 'polynomial':
        return lr * (1 - (step - first) / (last - first)) ** decay['power']
    if decay['to'] > 0 and 'by' not in decay:  # by epochs
        step = step // epoch * epoch
    if 'over' in decay:
        first = 0
    course = math.cos(math.pi * (step - first) / (last - first))
    return decay['to'] + (lr - decay['to']) * (1 + course) / 2


@pytest.mark.parametrize('name', distinct_schedules())
def test_the_runner_trains_with_the_rates_of_the_source(name, tmp_path):
    cfg, facts = Config.fromfile(CONFIGS / f'{name}.py'), expected_facts(name)
    epoch = 200 if 'iterations' in (facts['warm_up'] or {}) else 6  # steps come after the warm-up
    epoch = 10_000 if 'iterations' in facts else epoch
    rates = rates_of_runner(cfg, tmp_path, epoch)
    steps = range(facts.get('iterations', facts.get('epochs', 0) * epoch))
    assert len(rates) == len(steps)
    # during the warm-up MMEngine's cosine over all epochs takes its first percent off already
    slack = {True: 0.011 if 'over' in facts['decay'] else 1e-6, False: 1e-4}
    warm_up = facts['warm_up'] or {}
    first = warm_up.get('epochs', 0) * epoch
    for step, rate in zip(steps, rates, strict=True):
        expected = rate_of_source(facts, step, epoch)
        assert rate == pytest.approx(expected, abs=slack[step < first] * facts['lr']), step

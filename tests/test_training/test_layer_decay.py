"""Layer-wise learning rates: every family, every toolbox, wrapped or bare."""

import copy
import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvitattn.checkpoint.pretrained import drop_pretrained
from mmvitattn.models import LinGlo, QnAViT, SAGViT
from mmvitattn.training.layer_decay import LayerDecayOptimWrapperConstructor

LR, DECAY, RATE = 1e-3, 0.05, 0.8
FAMILIES = {
    'LinGlo': (lambda **options: LinGlo('b0', **options), 'saliency'),
    'QnAViT': (lambda **options: QnAViT('tiny', **options), 'query'),
    'SAGViT': (lambda **options: SAGViT('tiny', **options), 'position.table'),
}


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(4, 3)


def optimizer_of(model, scope='mmdet', **paramwise):
    init_default_scope(scope)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        constructor='mmvitattn.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=RATE, **paramwise),
    )
    return build_optim_wrapper(model, cfg).optimizer


def options_by_name(model, optimizer):
    """(lr, weight decay) of each parameter that the optimizer has; each comes once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    options = {}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            assert name not in options
            options[name] = (group['lr'], group['weight_decay'])
    return options


@pytest.mark.parametrize('family', FAMILIES)
def test_rates_and_decay_of_every_parameter(family):
    build, exempt = FAMILIES[family]
    model = Detector(build())
    options = options_by_name(model, optimizer_of(model))
    assert set(options) == {name for name, _ in model.named_parameters()}
    depths = set()
    for name, parameter in model.named_parameters():
        depth, num_layers = model.backbone.get_layer_depth(name, 'backbone.')
        depths.add(depth)
        lr, decay = options[name]
        assert lr == pytest.approx(LR * RATE ** (num_layers - 1 - depth)), name
        no_decay = parameter.ndim == 1 or exempt in name
        no_decay |= name.endswith(('bias', 'attention_scale'))
        assert decay == (0 if no_decay else DECAY), name
    assert depths == set(range(num_layers))
    assert options['head.weight'] == (LR, DECAY)
    assert min(lr for lr, _ in options.values()) < 0.2 * LR


def test_groups_are_few_and_named():
    model = Detector(LinGlo('b0'))
    groups = optimizer_of(model).param_groups
    names = [group['group_name'] for group in groups]
    assert names[0].startswith('layer_0_') and len(set(names)) == len(names)
    num_layers = model.backbone.get_layer_depth('', '')[1]
    assert len(groups) == 2 * num_layers
    for group in groups:
        assert group['lr'] == pytest.approx(LR * group['lr_scale'])
        assert group['group_name'].endswith('_no_decay') == (group['weight_decay'] == 0)


def test_frozen_and_shared_parameters():
    model = Detector(LinGlo('b0', frozen_stages=1))
    model.head2 = nn.Linear(4, 3)
    model.head2.weight = model.head.weight
    options = options_by_name(model, optimizer_of(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(options) == trained
    assert not any(name.startswith(('backbone.stem', 'backbone.stages.0.')) for name in options)


def test_usual_keys_work_with_layer_decay():
    model = Detector(QnAViT('tiny'))
    plain = options_by_name(model, optimizer_of(model))
    custom = dict(
        custom_keys={'head': dict(lr_mult=2.0), 'query': dict(decay_mult=0.5)},
        bias_decay_mult=1.0,
        flat_decay_mult=None,
    )
    options = options_by_name(model, optimizer_of(model, **custom))
    assert options['head.weight'] == (2 * LR, DECAY)
    query, bias = (
        next(n for n in options if n.endswith(f'.{end}')) for end in ('query', 'fc1.bias')
    )
    assert options[query] == (plain[query][0], 0.5 * DECAY)
    assert (plain[bias][1], options[bias][1]) == (0, DECAY)
    scaled = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
    options = options_by_name(model, optimizer_of(model, **scaled))
    assert options[query] == (pytest.approx(0.1 * plain[query][0]), 0)


def test_bare_and_wrapped_models_agree(tmp_path):
    bare = LinGlo('b0')
    expected = options_by_name(bare, optimizer_of(bare))
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        wrapped = MMDistributedDataParallel(Detector(bare))
        options = options_by_name(wrapped.module, optimizer_of(wrapped))
    finally:
        torch.distributed.destroy_process_group()
    assert expected == {name: options[f'backbone.{name}'] for name in expected}


@pytest.mark.parametrize(
    'config',
    [
        'retinanet_linglo_b0_fpn_1x_coco',
        'semfpn_qna_vit_tiny_40k_ade20k',
        'linglo_b0_8xb128_in1k',
        'sag_tiny_8xb92_in1k',
    ],
)
def test_models_of_all_toolboxes(root, config):
    cfg = Config.fromfile(root / f'configs/{config}.py')
    init_default_scope(cfg.default_scope)
    drop_pretrained(cfg)
    model = MODELS.build(copy.deepcopy(cfg.model))
    options = options_by_name(model, optimizer_of(model, cfg.default_scope))
    assert set(options) == {name for name, _ in model.named_parameters()}
    heads = {lr for name, (lr, _) in options.items() if not name.startswith('backbone.')}
    assert heads == {LR}
    stem = {lr for name, (lr, _) in options.items() if name.startswith('backbone.stem.')}
    assert len(stem) == 1 and stem.pop() < 0.2 * LR


def test_it_trains():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
    model.backbone = LinGlo('b0', out_indices=0)
    optimizer = optimizer_of(model)
    before = copy.deepcopy(model.backbone.stem.state_dict())
    model.backbone(torch.rand(2, 3, 32, 32))[0].square().mean().backward()
    optimizer.step()
    weight = model.backbone.stem[0].conv.weight
    step = (weight - before['0.conv.weight']).abs().max().item()
    assert 0 < step < LR * RATE  # Adam's first step is the learning rate


def test_only_a_debug_log(capfd):
    logger = MMLogger.get_instance('test_layer_decay', logger_name='mmengine')
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        optimizer_of(Detector(LinGlo('b0', frozen_stages=1)))
        assert not [r.getMessage() for r in records if r.levelno > logging.DEBUG]
        logger.setLevel(logging.DEBUG)
        optimizer_of(Detector(LinGlo('b0')))
        lines = [r.getMessage() for r in records if r.getMessage().startswith('layer_')]
    finally:
        logger.setLevel(logging.INFO)
        logger.removeHandler(handler)
    assert any(line.startswith('layer_0_decay: 1 parameters, lr ') for line in lines)
    assert capfd.readouterr().out == ''


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9'])
def test_unusable_rates(rate):
    with pytest.raises(ValueError, match=r'decay_rate=.* must be a number in \(0, 1\]'):
        LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='AdamW', lr=LR)), dict(decay_rate=rate)
        )


def test_models_without_such_a_backbone():
    class Other(nn.Module):
        backbone = None

    with pytest.raises(TypeError, match='Other: it has no get_layer_depth'):
        optimizer_of(Other())
    with pytest.raises(TypeError, match='its backbone, Linear, has no get_layer_depth'):
        optimizer_of(Detector(nn.Linear(2, 2)))


def test_an_optimizer_without_weight_decay():
    model = LinGlo('b0')
    cfg = dict(
        optimizer=dict(type='SGD', lr=LR),
        constructor='mmvitattn.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=RATE),
    )
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert {group['weight_decay'] for group in groups} == {0}
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))

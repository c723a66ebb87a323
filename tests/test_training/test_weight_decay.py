"""Weight decay by ``no_weight_decay()``: any model, any optimizer, resumed runs."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from mmvitattn.models import LinGlo, QnAPooling, QnAViT, SAGViT

LR, DECAY = 1e-3, 0.05
BACKBONES = {
    'LinGlo': (lambda: LinGlo('b0', out_indices=0, position='absolute'), ('saliency', 'table')),
    'QnAViT': (
        lambda: QnAViT('tiny', out_indices=0),
        ('query', 'position_bias', 'attention_scale'),
    ),
    'SAGViT': (lambda: SAGViT('small', out_indices=0), ('table',)),
    'QnAPooling': (lambda: QnAPooling(8, 2), ('query', 'position_bias', 'attention_scale')),
    'others': (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), ()),
}


class Model(nn.Module):
    """A part deep inside a model, as in a semi-supervised detector."""

    def __init__(self, part):
        super().__init__()
        self.student = nn.ModuleDict(dict(part=part, head=nn.Linear(4, 3)))


def optimizer_of(model, optimizer=None, **paramwise):
    init_default_scope('mmengine')
    cfg = dict(
        optimizer=optimizer or dict(type='AdamW', lr=LR, weight_decay=DECAY),
        constructor='mmvitattn.WeightDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise or None,
    )
    return build_optim_wrapper(model, cfg).optimizer


def decays(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('kind', BACKBONES)
@pytest.mark.parametrize('inside', [True, False])
def test_tables_vectors_and_biases_do_not_decay(kind, inside):
    build, ends = BACKBONES[kind]
    model = Model(build()) if inside else build()
    found = decays(model, optimizer_of(model))
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or name.endswith(('.bias', *ends))
        assert found[name] == (0 if exempt else DECAY), name
    assert DECAY in found.values() and 0 in found.values()


def test_other_vectors_decay():
    """Sharded training flattens every parameter, and so makes a vector of each."""
    model = Model(nn.ParameterDict(dict(scale=nn.Parameter(torch.ones(4)))))
    assert decays(model, optimizer_of(model))['student.part.scale'] == DECAY


def test_custom_keys_hold():
    model = Model(QnAViT('tiny', out_indices=0))
    factors = {'part': dict(lr_mult=0.1), '.query': dict(decay_mult=0.5)}  # the longest counts
    optimizer = optimizer_of(model, custom_keys=factors)
    found, plain = decays(model, optimizer), decays(model, optimizer_of(model))
    query, table, norm = (
        next(name for name in found if name.endswith(end))
        for end in ('.query', '.position_bias', 'norms.0.weight')
    )
    assert (plain[query], found[query]) == (0, 0.5 * DECAY)
    assert plain[table] == found[table] == 0  # also where a custom key changes its rate
    assert (plain[norm], found[norm]) == (0, DECAY)  # MMEngine's custom keys replace its rules
    rates = {name: group['lr'] for name, group in zip(found, optimizer.param_groups, strict=True)}
    assert (rates[query], rates[table]) == (LR, pytest.approx(0.1 * LR))


def test_groups_are_those_of_mmengine():
    """One for each parameter, in order: the optimizers of older checkpoints fit."""
    model = Model(SAGViT('small', out_indices=0))
    optimizer = optimizer_of(model)
    parameters = [group['params'] for group in optimizer.param_groups]
    assert [len(group) for group in parameters] == [1] * len(parameters)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    other = build_optim_wrapper(model, cfg).optimizer
    for group, (parameter,) in zip(other.param_groups, parameters, strict=True):
        assert group['params'][0] is parameter
    optimizer.load_state_dict(other.state_dict())


def test_without_weight_decay_and_frozen(caplog):
    model = Model(LinGlo('b0', out_indices=0, frozen_stages=1))
    for settings in (dict(type='SGD', lr=LR), dict(type='SGD', lr=LR, weight_decay=DECAY)):
        with caplog.at_level(logging.INFO, logger=MMLogger.get_current_instance().name):
            optimizer = optimizer_of(model, settings)
        assert not caplog.records
        (model.student.head(torch.ones(1, 4)).sum()).backward()
        optimizer.step()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(decays(model, optimizer)) == trained

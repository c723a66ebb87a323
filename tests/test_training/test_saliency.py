import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmvitattn.layers import KeyOnlyAttention
from mmvitattn.models import LinGlo
from mmvitattn.training.saliency import SaliencyHook, describe

ARCH = dict(
    channels=(8, 16, 24, 32), depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4
)


class Run:
    """What the hook uses of a runner."""

    def __init__(self, model):
        self.model, self.iter, self.logged = model, 0, []
        self.visualizer = SimpleNamespace(
            add_scalars=lambda scalars, step: self.logged.append((step, scalars))
        )
        self.logger = logging.getLogger('test')

    def train(
        self, hook, steps, loss=lambda model: sum(y.sum() for y in model(torch.rand(2, 3, 64, 64)))
    ):
        for _ in range(steps):
            hook.before_train_iter(self, self.iter)
            loss(self.model).backward()
            hook.after_train_iter(self, self.iter)
            self.iter += 1
        return self.logged


def written_out(layer, x):
    """Both statistics by the definitions, in float64."""
    layer, x = layer.double(), x.double()
    keys = layer.key(x).unflatten(-1, layer.saliency.shape)
    scores = (keys * layer.saliency).sum(-1) / layer.saliency.shape[1] ** 0.5
    weights = scores.softmax(1)  # (B, N, h)
    context = (weights[..., None] * keys).sum(1, keepdim=True).flatten(2)
    gated = (context * layer.value(x)) @ layer.gate.weight.T
    relative = weights * x.shape[1]
    contrast = relative.var(1, unbiased=False).sqrt().mean()
    return contrast, gated.square().mean().sqrt() / keys.square().mean().sqrt()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_statistics_equal_their_definitions(dtype):
    layer, x = KeyOnlyAttention(8, num_heads=2), torch.randn(2, 15, 8)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer, x = layer.to(dtype), x.to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    with torch.autocast('cpu', torch.bfloat16):
        actual = describe(layer, x)
    for value, expected in zip(actual, written_out(layer, x), strict=True):
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)


def test_a_plain_mean_has_no_contrast():
    layer = KeyOnlyAttention(8)
    nn.init.zeros_(layer.saliency)
    assert describe(layer, torch.randn(1, 4, 5, 8))[0] == pytest.approx(0, abs=1e-6)


def test_logs_each_stage_at_its_interval():
    run = Run(LinGlo(ARCH))
    logged = run.train(SaliencyHook(interval=2), 4)
    assert [step for step, _ in logged] == [1, 2, 4]
    for step, scalars in logged:
        assert scalars.pop('iter') == step
        stages = {
            f'saliency/{k}_stage{n}'
            for k in ('contrast', 'gated', 'gradient')
            for n in (1, 2, 3, 4)
        }
        assert set(scalars) == stages and all(value > 0 for value in scalars.values())
    layers = [m for m in run.model.modules() if isinstance(m, KeyOnlyAttention)]
    assert not any(layer._forward_pre_hooks or layer.saliency._backward_hooks for layer in layers)


def test_training_does_not_change():
    gradients = []
    for interval in (1, 100):
        torch.manual_seed(0)
        run = Run(LinGlo(ARCH))
        run.iter = 1
        run.train(SaliencyHook(interval), 2)
        gradients.append([p.grad for p in run.model.parameters() if p.grad is not None])
    for measured, plain in zip(*gradients, strict=True):
        assert torch.equal(measured, plain)


def test_other_models_and_frozen_layers():
    run = Run(nn.Linear(2, 2))
    assert run.train(SaliencyHook(), 1, lambda model: model(torch.rand(1, 2)).sum()) == []
    run = Run(nn.Sequential(nn.Linear(8, 8), KeyOnlyAttention(8)))
    run.model[1].requires_grad_(False)
    ((_, scalars),) = run.train(SaliencyHook(), 1, lambda model: model(torch.rand(1, 4, 8)).sum())
    assert set(scalars) == {'iter', 'saliency/contrast_model', 'saliency/gated_model'}

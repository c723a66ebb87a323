import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvitattn.layers import QnALayer
from mmvitattn.layers.init import lecun_normal_
from mmvitattn.ops import force
from mmvitattn.ops.dispatch import HAS_OPERATORS

DATA = Path(__file__).parents[1] / 'data' / 'qna'
CASES = json.loads((DATA / 'recorded_layers.json').read_text())


def recorded_layer(case):
    """The layer of the official release with this number, its input and output."""
    with np.load(DATA / 'recorded_layers.npz') as file:
        recorded = {
            name.split('/', 1)[1]: torch.from_numpy(file[name])
            for name in file
            if name.startswith(f'{case}/')
        }
    arguments = CASES[case]
    layer = QnALayer(
        arguments['features'],
        arguments['heads'],
        arguments['kernel_size'],
        arguments['stride'],
        arguments['n_queries'],
        arguments['normalize_query'],
        in_channels=arguments['in_channels'],
    )
    table = layer.position_bias.shape
    layer.load_state_dict(
        {
            'query': recorded['params/query'],
            'key.weight': recorded['params/Wk'].T,
            'value.weight': recorded['params/to_v/kernel'].T,
            'out.weight': recorded['params/to_out/kernel'].T,
            'position_bias': recorded['params/rpe_bias'].view(table),
            'attention_scale': recorded['params/attn_scale_weights'].view(table),
        }
    )
    return layer, recorded['input'], recorded['output']


@pytest.mark.parametrize('implementation', ['offset_loop', 'reference'])
@pytest.mark.parametrize('case', range(len(CASES)))
def test_equals_the_official_release(case, implementation):
    layer, x, expected = recorded_layer(case)
    with torch.no_grad(), force(f'learned_query_attention={implementation}'):
        actual = layer(x)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() / expected.abs().max() < 2e-6


def test_start_values():
    layer = QnALayer(256, num_heads=16, kernel_size=7)
    assert (layer.position_bias == 0).all()
    assert layer.attention_scale.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.query.abs().max() <= 2 * 16**-0.5
    # a normal cut at two standard deviations has 0.88 of its standard deviation
    assert layer.query.std().item() == pytest.approx(0.88 * 16**-0.5, rel=0.1)
    for linear in (layer.key, layer.value, layer.out):
        assert linear.bias is None
        assert linear.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)


def test_lecun_normal_counts_the_fan_in():
    conv = torch.nn.Conv2d(32, 64, 4)
    lecun_normal_(conv)
    assert conv.weight.std().item() == pytest.approx((32 * 16) ** -0.5, rel=0.02)
    assert conv.weight.abs().max() <= 2 * (32 * 16) ** -0.5 / 0.8796
    assert (conv.bias == 0).all()


@pytest.mark.parametrize('position_bias', ['relative_pos', None])
@pytest.mark.parametrize(
    'attention_scale', ['normal', 'normal_elementwise', 'ones', 'posneg', 'avg', None]
)
def test_bias_and_scale_types(attention_scale, position_bias):
    """Each type against the recorded layer with the equivalent table."""
    full, x, _ = recorded_layer(0)
    layer = QnALayer(16, num_heads=4, position_bias=position_bias, attention_scale=attention_scale)
    shared = {
        k: v for k, v in full.state_dict().items() if k not in ('position_bias', 'attention_scale')
    }
    layer.load_state_dict(shared, strict=False)
    signs = torch.ones(8)
    signs[4:] = -1
    tables = {
        'normal': lambda: layer.attention_scale,
        'normal_elementwise': lambda: layer.attention_scale.expand(9, 2, 4),
        'ones': lambda: torch.ones(9, 2, 4),
        'posneg': lambda: signs.view(1, 2, 4).expand(9, 2, 4),
        'avg': lambda: torch.full((9, 2, 4), 0.5),
        None: lambda: torch.ones(9, 2, 4),
    }
    full.position_bias.data.zero_()
    full.attention_scale.data.copy_(tables[attention_scale]())
    torch.testing.assert_close(layer(x), full(x))
    learned = {name for name, _ in layer.named_parameters()} - set(shared)
    expected = (
        {'attention_scale'}
        if attention_scale in ('normal', 'normal_elementwise', 'ones')
        else set()
    )
    assert learned == expected | ({'position_bias'} if position_bias else set())
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}


@torch.no_grad()
@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('position_bias', ['absolute_pos', 'contextual_pos'])
def test_biases_that_come_from_the_queries(position_bias, normalize):
    """Against each product written out, in float64."""
    torch.manual_seed(0)
    options = dict(num_queries=3, normalize_queries=normalize)
    layer = QnALayer(8, 2, 5, position_bias=position_bias, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    queries = np.zeros((3, 2, 4))
    for q in range(3):
        for h in range(2):
            part = layer.query[q, 4 * h : 4 * h + 4].numpy()
            queries[q, h] = part / ((np.linalg.norm(part) + 1e-6) if normalize else 1) / 2
    expected = np.zeros(25 * 3 * 2)
    if position_bias == 'absolute_pos':
        vectors = layer.position_bias_vectors.numpy()
        for i, (k, q, h) in enumerate(np.ndindex(25, 3, 2)):
            expected[i] = queries[q, h] @ vectors[k, q, 4 * h : 4 * h + 4]
    else:  # written query by query, read offset by offset
        weight, bias = layer.position_map.weight.numpy(), layer.position_map.bias.numpy()
        for i, (q, k, h) in enumerate(np.ndindex(3, 25, 2)):
            expected[i] = weight[2 * k + h] @ queries[q].reshape(8) + bias[2 * k + h]
    np.testing.assert_allclose(layer.bias_table(), expected.reshape(25, 3, 2), atol=1e-12)

    table = QnALayer(8, 2, 5, **options).double()
    shared = {k: v for k, v in layer.state_dict().items() if 'position' not in k}
    table.load_state_dict(shared | {'position_bias': layer.bias_table()})
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), table(x))
    torch.testing.assert_close(layer.attention_weights(x), table.attention_weights(x))
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))  # no matter how large the batch


def test_start_values_of_biases_that_come_from_the_queries():
    layer = QnALayer(64, 8, 7, position_bias='absolute_pos')
    assert layer.position_bias_vectors.shape == (49, 2, 64)
    assert (layer.position_bias_vectors == 0).all()
    layer = QnALayer(64, 8, 7, position_bias='contextual_pos')
    assert layer.position_map.weight.shape == (49 * 8, 64)
    assert layer.position_map.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert (layer.position_map.bias == 0).all()


@pytest.mark.parametrize('position_bias', ['relative_pos', 'absolute_pos', 'contextual_pos'])
def test_norm_of_the_queries_as_a_constant(position_bias):
    """The gradient is that of a layer with the norms divided out beforehand, over the norms."""
    torch.manual_seed(0)
    options = dict(kernel_size=3, position_bias=position_bias)
    layer = QnALayer(8, 2, normalize_stop_grads=True, **options).double()
    plain = QnALayer(8, 2, normalize_queries=False, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    plain.load_state_dict(layer.state_dict())
    heads = plain.query.data.view(2, 2, 4)
    norms = (heads.norm(dim=-1, keepdim=True) + 1e-6).expand_as(heads).reshape(2, 8)
    plain.query.data = plain.query.data / norms
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    weights = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    for each in (layer, plain):
        (each(x) * weights).sum().backward()
    torch.testing.assert_close(layer.query.grad, plain.query.grad / norms)
    gradient = layer.query.grad.clone()
    layer.normalize_stop_grads, layer.query.grad = False, None
    (layer(x) * weights).sum().backward()
    assert not torch.allclose(layer.query.grad, gradient)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_compiles_to_one_graph(stride, autocast):
    if autocast and not HAS_OPERATORS:
        pytest.skip('torch.compile of torch 2.1 cannot trace autocast')
    layer = QnALayer(8, num_heads=2, stride=stride)
    x = torch.randn(1, 5, 6, 8, requires_grad=True)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        actual, expected = compiled(x), layer(x)
    torch.testing.assert_close(actual, expected)
    inputs = [x, *layer.parameters()]
    tolerance = dict(rtol=2e-2, atol=2e-2) if autocast else {}
    for a, e in zip(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, e, **tolerance)
    torch._dynamo.reset()


@pytest.mark.parametrize('autocast', [True, False])
def test_bfloat16_is_finite_and_close(autocast):
    layer, x, expected = recorded_layer(0)
    layer.query.data *= 1e4
    layer.normalize_queries = False
    expected = layer(x).detach()
    if not autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        actual = layer(x.requires_grad_())
    assert actual.dtype == torch.bfloat16
    actual.float().square().mean().backward()
    assert actual.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters()) and x.grad.isfinite().all()
    if autocast:  # the scores are those of float32: the same positions win
        assert (actual - expected).abs().max() / expected.abs().max() < 2e-2


def test_sizes():
    layer = QnALayer(12, num_heads=3, kernel_size=5, stride=2, in_channels=4, out_channels=7)
    for height, width in ((1, 1), (2, 3), (9, 4)):
        output = layer(torch.randn(2, height, width, 4))
        assert output.shape == (2, math.ceil(height / 2), math.ceil(width / 2), 7)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_heads=3), 'num_heads=3'),
        (dict(kernel_size=4), 'kernel_size=4'),
        (dict(num_queries=0), 'num_queries=0'),
        (dict(position_bias='absolute'), "'absolute'"),
        (dict(attention_scale='none'), "'none'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        QnALayer(**dict(channels=16, num_heads=2) | options)

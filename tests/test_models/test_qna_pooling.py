import numpy as np
import pytest
import torch
from torch import nn

from mmvitattn.models import QnAPooling
from mmvitattn.ops import reference
from mmvitattn.registry import MODELS


def pooling(map_size=5, skip=False, **options):
    """In float64, with tables that are not at their start values."""
    torch.manual_seed(0)
    neck = QnAPooling(12, num_heads=3, map_size=map_size, skip=skip, **options).double()
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.5)
    return neck


def by_hand(neck, maps, bias, scale):
    """Equation by equation in numpy; tables are (H * W, q, h)."""
    x = maps.numpy().transpose(0, 2, 3, 1).reshape(len(maps), -1, 12)
    weights = {name: p.detach().numpy() for name, p in neck.named_parameters()}
    heads = 3
    output = np.zeros((len(maps), 12))
    for b, tokens in enumerate(x):
        keys, values = tokens @ weights['key.weight'].T, tokens @ weights['value.weight'].T
        pooled = np.zeros(12)
        for query_index, whole_query in enumerate(weights['query']):
            for head in range(heads):
                part = slice(4 * head, 4 * head + 4)
                query = whole_query[part] / (np.linalg.norm(whole_query[part]) + 1e-6)
                scores = keys[:, part] @ query / 2 + bias[:, query_index, head]
                softmax = np.exp(scores - scores.max())
                softmax /= softmax.sum()
                pooled[part] += (softmax * scale[:, query_index, head]) @ values[:, part]
        output[b] = weights['out.weight'] @ pooled
        if neck.skip:
            output[b] += tokens.mean(0)
    return output


@torch.no_grad()
@pytest.mark.parametrize('skip', [False, True])
def test_equals_the_equations(skip):
    neck, maps = pooling(skip=skip), torch.randn(2, 12, 5, 5, dtype=torch.float64)
    expected = by_hand(neck, maps, neck.position_bias.numpy(), neck.attention_scale.numpy())
    np.testing.assert_allclose(neck(maps), expected, atol=1e-12)
    (in_a_tuple,) = neck((maps[:, :, :2], maps))
    assert torch.equal(in_a_tuple, neck(maps))


@torch.no_grad()
def test_is_the_attention_of_the_centre():
    """On a map of an odd side, the window of the layer around its centre is the whole map."""
    neck, maps = pooling(), torch.randn(2, 12, 5, 5, dtype=torch.float64)
    x = maps.permute(0, 2, 3, 1)
    query = neck.query.unflatten(-1, (3, 4))
    query = query / (query.norm(dim=-1, keepdim=True) + 1e-6) / 2
    scores = torch.einsum('byxhd,qhd->byxqh', neck.key(x).unflatten(-1, (3, 4)), query)
    values = neck.value(x).unflatten(-1, (3, 4))
    attended = reference.learned_query_attention(
        scores, values, neck.position_bias, neck.attention_scale, kernel_size=5
    )
    torch.testing.assert_close(neck(maps), neck.out(attended[:, 2, 2].flatten(1)))


@torch.no_grad()
@pytest.mark.parametrize('size', [(5, 8), (3, 4), (1, 1)])
def test_tables_are_resized_to_other_maps(size):
    neck, maps = pooling(), torch.randn(1, 12, *size, dtype=torch.float64)
    tables = []
    for table in (neck.position_bias, neck.attention_scale):
        square = table.reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(square, size, mode='bicubic', antialias=True)
        tables.append(resized.permute(0, 2, 3, 1).reshape(-1, 2, 3).numpy())
    np.testing.assert_allclose(neck(maps), by_hand(neck, maps, *tables), atol=1e-10)


def test_gradients():
    neck = pooling(map_size=2, skip=True)
    maps = torch.randn(1, 12, 2, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(neck.named_parameters())

    def run(maps, *values):
        return torch.func.functional_call(neck, dict(zip(parameters, values, strict=True)), maps)

    assert torch.autograd.gradcheck(run, (maps, *parameters.values()), fast_mode=True)


def test_large_scores_in_half_precision():
    neck = pooling().bfloat16()
    neck.key.weight.data.mul_(1e4)
    maps = torch.randn(2, 12, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    output = neck(maps)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and output.isfinite().all()
    assert maps.grad.isfinite().all() and all(p.grad.isfinite().all() for p in neck.parameters())


def test_is_a_neck_of_configs():
    config = dict(type='mmvitattn.QnAPooling', in_channels=64, num_heads=8, map_size=7)
    neck = MODELS.build(config)
    shapes = {name: tuple(p.shape) for name, p in neck.named_parameters()}
    assert shapes['position_bias'] == shapes['attention_scale'] == (49, 2, 8)
    assert (neck.position_bias == 0).all()
    assert neck.attention_scale.std().item() == pytest.approx(0.02, rel=0.1)
    assert neck.query.abs().max() <= 2 * 8**-0.5


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_heads=5), 'num_heads=5 must divide in_channels=12'),
        (dict(num_heads=3, map_size=0), 'map_size=0'),
        (dict(num_heads=3, num_queries=0), 'num_queries=0'),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        QnAPooling(12, **options)

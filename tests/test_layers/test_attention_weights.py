"""The layers' attention weights, applied to the values, give the layers' outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvitattn.layers import KeyOnlyAttention, LocalShiftAttention, QnALayer
from mmvitattn.layers.learned_query import ATTENTION_SCALES
from mmvitattn.ops import force, shift_weights, window_weights


def randomised(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.double()


@pytest.mark.parametrize('shape', [(2, 9, 12), (2, 3, 5, 12)])
def test_key_only(shape):
    layer, x = randomised(KeyOnlyAttention(12, num_heads=3)), torch.randn(shape).double()
    weights = layer.attention_weights(x)
    assert weights.shape == (2, 3, *shape[1:-1])
    torch.testing.assert_close(weights.flatten(2).sum(-1), torch.ones(2, 3).double())
    keys = layer.key(x)
    context = torch.einsum(
        'bhn,bnhd->bhd', weights.flatten(2), keys.flatten(1, -2).unflatten(-1, (3, 4))
    )
    gated = layer.value(x) * context.flatten(1).view(2, *[1] * (len(shape) - 2), 12)
    torch.testing.assert_close(layer(x), layer.out(layer.gate(gated) + keys))


@pytest.mark.parametrize('attention_scale', ATTENTION_SCALES)
@pytest.mark.parametrize('stride', [1, 2])
def test_learned_query(stride, attention_scale):
    layer = QnALayer(12, 3, 5, stride, num_queries=2, attention_scale=attention_scale)
    layer, x = randomised(layer), torch.randn(2, 7, 9, 12).double()
    weights = layer.attention_weights(x)
    rows, columns = -(-7 // stride), -(-9 // stride)
    assert weights.shape == (2, rows, columns, 25, 3)
    values = layer.value(x).permute(0, 3, 1, 2)
    windows = F.unfold(values, 5, padding=2, stride=stride)  # zeros outside the map
    windows = windows.view(2, 3, 4, 25, rows, columns)
    mean = torch.einsum('byxkh,bhdkyx->byxhd', weights, windows)
    torch.testing.assert_close(layer(x), layer.out(mean.flatten(-2)))


def test_learned_query_has_no_weight_outside_the_map():
    weights = randomised(QnALayer(4, 2, 3)).attention_weights(torch.randn(1, 2, 2, 4).double())
    corner = weights[0, 0, 0].view(3, 3, 2)
    assert (corner[0] == 0).all() and (corner[:, 0] == 0).all() and (corner[1:, 1:] != 0).all()


def test_learned_query_without_tables():
    """Plain softmax weights, which sum to one for each query."""
    weights = window_weights(torch.randn(1, 4, 5, 2, 3), None, None, kernel_size=3)
    torch.testing.assert_close(weights.sum(3), torch.full((1, 4, 5, 3), 2.0))
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        window_weights(torch.randn(1, 4, 5, 2, 3), None, None, kernel_size=4)


@pytest.mark.parametrize('shared_kv', [False, True])
def test_local_shift(shared_kv):
    layer = randomised(LocalShiftAttention(12, num_heads=3, shared_kv=shared_kv))
    x = torch.randn(5, 2, 3, 4, 12).double()
    weights = layer.attention_weights(x)
    assert weights.shape == (5, 2, 3, 4, 3)
    torch.testing.assert_close(weights.sum(0), torch.ones(2, 3, 4, 3).double())
    values = layer.key_value(x).chunk(2, dim=-1)[1].unflatten(-1, (-1, 4))
    mean = (weights[..., None] * values).sum(0)
    with force('local_shift_attention=reference'):
        torch.testing.assert_close(layer(x), layer.out(mean.flatten(-2)))
    with pytest.raises(ValueError, match='a multiple of 5 heads'):
        shift_weights(x, (None, None), (None, None), num_heads=5)


@pytest.mark.parametrize(
    ('layer', 'shape'),
    [
        (KeyOnlyAttention(8, 2), (1, 3, 3, 8)),
        (QnALayer(8, 2), (1, 3, 3, 8)),
        (LocalShiftAttention(8, 2), (4, 1, 3, 3, 8)),
    ],
)
def test_weights_are_precise_under_autocast(layer, shape):
    with torch.autocast('cpu', torch.bfloat16):
        weights = layer.attention_weights(torch.randn(shape))
    assert weights.dtype == torch.float32

import pytest
import torch

from mmvitattn.layers import FFN, RPCPE, KeyOnlyAttention
from mmvitattn.ops.reference import key_only_attention as reference


@pytest.mark.parametrize('shape', [(2, 9, 12), (2, 3, 5, 12), (1, 2, 3, 2, 12)])
def test_any_number_of_position_axes(shape):
    layer = KeyOnlyAttention(12, num_heads=3).double()
    x = torch.randn(shape, dtype=torch.float64)
    affines = [(m.weight, m.bias) for m in (layer.key, layer.value, layer.gate, layer.out)]
    expected = reference(x.flatten(1, -2), layer.saliency, *affines).view(shape)
    torch.testing.assert_close(layer(x), expected)


def test_positions_are_exchangeable():
    """Global attention without positions: permuting the input permutes the output."""
    layer, x, order = KeyOnlyAttention(8, 2), torch.randn(2, 20, 8), torch.randperm(20)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-4, atol=1e-6)


def test_initialisation():
    torch.manual_seed(0)
    layer = KeyOnlyAttention(256, 8)
    for weight in (layer.key.weight, layer.out.weight, layer.saliency):
        assert abs(weight.std().item() - 0.02) < 0.002
        assert abs(weight.mean().item()) < 0.005
    assert layer.gate.bias.abs().sum() == 0


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match='num_heads=5 must divide channels=12'):
        KeyOnlyAttention(12, num_heads=5)


def test_ffn_with_position_encoding_follows_its_order():
    ffn = FFN(4, 8, position=RPCPE(8)).eval()
    x = torch.randn(2, 5, 6, 4)
    hidden = ffn.position(ffn.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = ffn.fc2(torch.nn.functional.gelu(hidden))
    torch.testing.assert_close(ffn(x), expected)
    assert ffn(x).is_contiguous()

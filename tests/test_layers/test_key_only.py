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


BARE = """
import sys, warnings
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
def without_mm(name, *args):
    hidden = name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    return None if hidden else find_spec(name, *args)
PathFinder.find_spec = without_mm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    from mmvitattn.layers import KeyOnlyAttention
import torch
print(KeyOnlyAttention(8, 2)(torch.rand(1, 4, 4, 8)).shape)
print([str(w.message) for w in caught if 'mmvitattn' in str(w.message)])
import mmvitattn
try:
    mmvitattn.models
except AttributeError as error:
    print('AttributeError:', error)
"""


def test_layers_work_without_any_mm_package_and_say_what_to_install(run_code):
    shape, warning, error = run_code(BARE).splitlines()
    assert shape == 'torch.Size([1, 4, 4, 8])'
    assert warning.count('mmvitattn[onedl]') == 1
    assert error.startswith('AttributeError') and 'mmvitattn[onedl]' in error

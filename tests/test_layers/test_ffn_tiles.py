"""Inference in tiles: a hidden map that is never there as a whole changes no number."""

import pytest
import torch
from torch import nn

from mmvitattn.layers import FFN, RPCPE
from mmvitattn.layers import ffn as module


def make_ffn(position, approximate='none'):
    torch.manual_seed(0)
    ffn = FFN(4, 6, position, approximate).eval()
    for parameter in ffn.parameters():
        nn.init.normal_(parameter)
    return ffn


def both_ways(ffn, x, monkeypatch, tile):
    """Outputs as a whole and in tiles, and the largest hidden map of the second in numbers."""
    sizes = []
    ffn.fc2.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    whole = ffn(x)
    monkeypatch.setattr(module, 'TILE', tile)
    sizes.clear()
    with torch.no_grad():
        tiled = ffn(x)
    return whole, tiled, sizes


@pytest.mark.parametrize('shape', [(1, 7, 5), (3, 2, 3), (2, 9, 1), (1, 1, 8), (5, 3, 3)])
@pytest.mark.parametrize('tile', [1, 40, 100, 200])
@pytest.mark.parametrize('kernel_size', [None, 3, 5])
def test_tiles_equal_the_whole(monkeypatch, shape, tile, kernel_size):
    position = None if kernel_size is None else RPCPE(6, kernel_size=kernel_size)
    ffn = make_ffn(position)
    x = torch.randn(*shape, 4)
    whole, tiled, sizes = both_ways(ffn, x, monkeypatch, tile)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)
    hidden = whole[..., 0].numel() * 6
    assert (len(sizes) > 1) == (hidden > 2 * tile and shape[:2] != (1, 1))
    if len(sizes) > 1:  # a row is the least
        assert max(sizes) <= max(tile, shape[2] * 6)


def test_deployed_and_tanh(monkeypatch):
    position = RPCPE(6)
    ffn = make_ffn(position, 'tanh')
    position.switch_to_deploy()
    whole, tiled, sizes = both_ways(ffn, torch.randn(2, 6, 7, 4), monkeypatch, 100)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)
    assert len(sizes) > 1


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_autocast(monkeypatch, approximate):
    ffn = make_ffn(RPCPE(6), approximate)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        whole, tiled, sizes = both_ways(ffn, torch.randn(2, 6, 7, 4), monkeypatch, 100)
    assert tiled.dtype == whole.dtype == torch.bfloat16 and len(sizes) > 1
    torch.testing.assert_close(tiled, whole, rtol=2e-2, atol=2e-2 * float(whole.abs().max()))


class Mean(nn.Module):
    """Depends on the whole map."""

    def forward(self, x):
        return x + x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize('place', ['position', 'gate'])
def test_what_sees_the_whole_map_is_not_tiled(monkeypatch, place):
    ffn = FFN(4, 6, **{place: Mean()}).eval()
    whole, tiled, sizes = both_ways(ffn, torch.randn(2, 6, 7, 4), monkeypatch, 1)
    assert torch.equal(whole, tiled) and len(sizes) == 1


def test_training_is_not_tiled(monkeypatch):
    """Batch statistics are those of the whole map."""
    ffn = make_ffn(RPCPE(6)).train()
    x = torch.randn(2, 6, 7, 4)
    _, _, sizes = both_ways(ffn, x, monkeypatch, 1)
    assert len(sizes) == 1

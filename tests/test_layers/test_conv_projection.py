import numpy as np
import pytest
import torch
from torch import nn

from mmvitattn.layers.conv_projection import (
    ConvProjection,
    ConvProjectionAttention,
    ConvTokenEmbed,
)


def make_attention(shared_kv=False):
    """All parameters and statistics drawn; in evaluation mode, in float64."""
    layer = ConvProjectionAttention(12, 3, shared_kv).double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in layer.named_buffers():
        if 'running' in name:
            nn.init.uniform_(buffer, 0.5, 2)
    return layer


def by_hand(projection, x, training=False):
    """Depth-wise convolution and BatchNorm in NumPy, position by position; (B, H', W', C)."""
    x, kernel = x.numpy(), projection.conv.weight.detach().numpy()[:, 0]  # (C, 3, 3)
    stride, norm = projection.conv.stride[0], projection.norm
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    y = np.empty((len(x), rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            y[:, i, j] = np.einsum('bklc,ckl->bc', window, kernel)
    if training:
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    else:
        mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    return (y - mean) / np.sqrt(variance + norm.eps) * weight + bias


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(4, 6), (5, 3), (1, 2)])
def test_projection_by_hand(size, stride, training):
    projection = ConvProjection(5, stride).double().train(training)
    for parameter in projection.parameters():
        nn.init.normal_(parameter)
    nn.init.uniform_(projection.norm.running_var, 0.5, 2)
    x = torch.randn(3, *size, 5, dtype=torch.float64)
    expected = by_hand(projection, x, training)
    np.testing.assert_allclose(projection(x).detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('shared_kv', [False, True])
@pytest.mark.parametrize('size', [(4, 6), (5, 3)])
def test_attention_by_hand(size, shared_kv):
    """Queries of all positions; keys and values of every second row and column."""
    layer = make_attention(shared_kv)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    query, key, value = (
        by_hand(projection, x).reshape(2, -1, 12)
        for projection in (layer.conv_query, layer.conv_key, layer.conv_value)
    )
    assert key.shape[1] == -(-size[0] // 2) * -(-size[1] // 2)
    weight = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    query = query @ weight['query.weight'].T + weight['query.bias']
    half = 4 if shared_kv else 12
    key = key @ weight['key_value.weight'][:half].T + weight['key_value.bias'][:half]
    value = value @ weight['key_value.weight'][half:].T + weight['key_value.bias'][half:]
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        k, v = (t if shared_kv else t[..., part] for t in (key, value))
        heads.append(softmax(query[..., part] @ k.swapaxes(1, 2) / 2) @ v)
    expected = np.concatenate(heads, -1) @ weight['out.weight'].T + weight['out.bias']
    actual = layer(x).detach().flatten(1, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_gradients():
    layer = make_attention().train()
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ('stride', 'kernel_size', 'padding'), [(1, 7, 3), (2, 7, 3), (4, 7, 2), (7, 13, 3)]
)
def test_embedding_overlaps_and_keeps_the_grid(stride, kernel_size, padding):
    """At stride 4 it is CvT's: kernel 7, padding 2."""
    embed = ConvTokenEmbed(3, 8, stride)
    assert embed.conv.kernel_size == (kernel_size,) * 2 and embed.conv.padding == (padding,) * 2
    for size in ((28, 28), (15, 29), (stride, 9)):
        grid = tuple(-(-n // stride) for n in size)
        assert embed.grid_size(*size) == grid
        y = embed(torch.randn(2, *size, 3))
        assert y.shape == (2, *grid, 8)
        assert y.mean(-1).abs().max() < 1e-5  # a LayerNorm at its start


def test_embedding_follows_the_definition():
    embed = ConvTokenEmbed(3, 8, 4).double()
    nn.init.normal_(embed.conv.weight)
    image = torch.randn(1, 3, 9, 7, dtype=torch.float64)
    padded = nn.functional.pad(image, (2, 3, 2, 5))
    y = nn.functional.conv2d(padded, embed.conv.weight, stride=4).permute(0, 2, 3, 1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(embed(image.permute(0, 2, 3, 1)), y)

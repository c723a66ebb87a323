"""Depth-wise convolution with a fast gradient, and batch statistics of several convolutions.

Shapes: B batch, C channels, H W map, n parallel convolutions. The nine offsets of a 3x3 kernel are
numbered row by row; ``x~`` is the map extended by zeros, I the positions inside it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from . import dispatch, reference
from .dispatch import Implementation, is_compiling

TILE = 28  # positions on a side
BAND = 1 << 19  # elements of a map processed at once: 2 MiB, which caches hold
MIN_POSITIONS = 256  # of a map for which moments are cheaper than branches
OFFSETS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
# For each pair (k, l) of offsets, where l - k lies in a 5x5 table of lags.
_LAG_OF_PAIR = torch.tensor(
    [5 * (l[0] - k[0] + 2) + l[1] - k[1] + 2 for k in OFFSETS for l in OFFSETS]  # noqa: E741
)
# The edges of a map: axis and index of the line, and the offsets that reach it from outside.
_EDGES = [
    (axis, index, [k for k, offset in enumerate(OFFSETS) if offset[axis - 2] == sign])
    for axis, index, sign in ((2, 0, 1), (2, -1, -1), (3, 0, 1), (3, -1, -1))
]
# Its corners: row, column, and the one offset that reaches it from outside both edges.
_CORNERS = [
    (row, column, OFFSETS.index((1 if row == 0 else -1, 1 if column == 0 else -1)))
    for row in (0, -1)
    for column in (0, -1)
]
_LAG_OF_EDGE_PAIR = torch.tensor([j - i + 2 for i in range(3) for j in range(3)])


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depth-wise convolution of stride 1 that keeps the size (zero padding).

    On the CPU the gradient for the input is computed as the convolution with the flipped kernel:
    PyTorch's own is twice as slow on channels_last maps (torch 2.14), or hundreds of times
    (torch 2.1).

    Args:
        x: input, (B, C, H, W), any memory format.
        weight: (C, 1, k, k) with odd k.
        bias: (C,) or None.

    Returns:
        Output, (B, C, H, W).
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    eager = not is_compiling()  # a compiler generates its own backward
    full_precision = x.dtype == weight.dtype and not torch.is_autocast_cpu_enabled()
    if trains and eager and full_precision and x.device.type == 'cpu':
        return _DepthwiseConv2d.apply(x, weight, bias)
    padding = int(weight.shape[-1]) // 2  # plain numbers, also while tracing
    return F.conv2d(x, weight, bias, padding=padding, groups=int(x.shape[1]))


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            padding = weight.shape[-1] // 2
            grad_x = F.conv2d(grad, weight.flip(-1, -2), padding=padding, groups=x.shape[1])
        if ctx.needs_input_grad[1]:
            grad_weight = correlate(x, grad, weight.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = _channel_sum(grad)
        return grad_x, grad_weight, grad_bias


def correlate(x: Tensor, other: Tensor, kernel_size: int) -> Tensor:
    """``sum_p other[p] x~[p + k]`` for all offsets k: a depth-wise convolution's weight gradient.

    PyTorch's own is slow for kernels larger than 3 x 3. Here ``x`` is convolved with ``other`` as
    the kernel, at the speed of forward convolutions. This is done in tiles, as that code is made
    for small kernels; the shorter sums also have smaller rounding errors.

    Args:
        x: (B, C, H, W).
        other: map of the same shape.
        kernel_size: odd side k.

    Returns:
        (C, 1, k, k), summed over the batch.
    """
    if kernel_size <= 3:
        return _correlate_by_backward(x, other, kernel_size, kernel_size // 2)
    result = x.new_zeros(x.shape[1], 1, kernel_size, kernel_size)
    reach, (height, width) = kernel_size // 2, x.shape[2:]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = other[:, :, top : top + TILE, left : left + TILE]
            bottom, right = top + tile.shape[2], left + tile.shape[3]
            outside = (reach - left, right + reach - width, reach - top, bottom + reach - height)
            rows = slice(max(0, top - reach), bottom + reach)
            columns = slice(max(0, left - reach), right + reach)
            around = F.pad(x[:, :, rows, columns], [max(0, n) for n in outside])
            for image, kernel in zip(around, tile, strict=True):
                result += F.conv2d(image[None], kernel[:, None], groups=len(kernel))[0][:, None]
    return result


def _correlate_by_backward(x: Tensor, other: Tensor, kernel_size: int, padding: int) -> Tensor:
    shape = (x.shape[1], 1, kernel_size, kernel_size)
    grad = conv2d_weight(x, shape, other, padding=padding, groups=x.shape[1])
    # With the strides of a contiguous parameter, as DistributedDataParallel expects.
    return grad.flatten().view(shape)


def _channel_sum(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2).sum(0)  # much faster than sum((0, 2, 3)) on CPU


def branch_statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
    """Batch mean and (biased) variance of parallel 3x3 depth-wise convolutions of one map.

    The convolutions are not computed. An output is linear in the 3x3 neighbourhood of its position,
    so its mean and variance follow from the first and second moments of the neighbourhoods, 9 and
    81 numbers for each channel, independent of the number of convolutions; see
    :func:`local_moments`.

    Args:
        x: (B, C, H, W).
        weights: (n, C, 1, 3, 3).

    Returns:
        Mean and variance over batch and positions, (n, C) each, differentiable; or None if
        computing the convolutions is better.
    """
    return dispatch.run('branch_statistics', (x, weights))


def statistics_by_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`branch_statistics`; always by moments."""
    count = x.shape[0] * x.shape[2] * x.shape[3]
    # In float64, since the variance is a small difference of large numbers.
    first, second = (moment.double() / count for moment in local_moments(x))
    kernels = weights.flatten(2).double()
    mean = torch.einsum('nck,ck->nc', kernels, first)
    mean_square = torch.einsum('nck,ckl,ncl->nc', kernels, second, kernels)
    var = (mean_square - mean.square()).clamp_min(0)
    return mean.to(weights.dtype), var.to(weights.dtype)


def _reason_against_moments(inputs: tuple[Tensor, Tensor]) -> str | None:
    x, _ = inputs
    if x.device.type != 'cpu':
        return 'implemented for CPUs only'
    if is_compiling():
        return 'a compiler fuses the branches'
    if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_cpu_enabled():
        return 'half precision is too coarse for the variance'
    if x.shape[2] * x.shape[3] < MIN_POSITIONS:
        return f'the map has fewer than {MIN_POSITIONS} positions'
    return None


def local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moments of all 3x3 neighbourhoods of a map, zeros outside it.

    ``first_k = sum_{p in I} x~[p+k]`` and ``second_kl = sum_{p in I} x~[p+k] x~[p+l]``. Summed over
    all p, the second would be the autocorrelation at lag l - k, which takes only 13 distinct
    values. The terms of the positions just outside the map are subtracted: those along the four
    edges, again autocorrelations; then the corners, which two edges share, are added back.

    Args:
        x: (B, C, H, W).

    Returns:
        Moments (C, 9) and (C, 9, 9), differentiable once.
    """
    return _LocalMoments.apply(x)


class _LocalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        first = _channel_sum(x)[:, None].repeat(1, 9)
        second = _autocorrelation(x)[:, _LAG_OF_PAIR].unflatten(1, (9, 9))
        for axis, index, members in _EDGES:
            edge = x.select(axis, index)
            first[:, members] -= edge.sum((0, 2))[:, None]
            lags = [
                (edge[..., lag:] * edge[..., : edge.shape[-1] - lag]).sum((0, 2))
                for lag in range(3)
            ]
            table = torch.stack([lags[2], lags[1], lags[0], lags[1], lags[2]], dim=1)
            rows = torch.tensor(members)
            second[:, rows[:, None], rows] -= table[:, _LAG_OF_EDGE_PAIR].unflatten(1, (3, 3))
        for row, column, k in _CORNERS:
            corner = x[:, :, row, column]
            first[:, k] += corner.sum(0)
            second[:, k, k] += corner.square().sum(0)
        return first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        channels = x.shape[1]
        symmetric = grad_second + grad_second.mT
        lags = _sum_by_lag(symmetric.flatten(1), _LAG_OF_PAIR, 25).view(channels, 1, 5, 5)
        grad = F.conv2d(x, lags, grad_first.sum(1), padding=2, groups=channels)
        for axis, index, members in _EDGES:
            rows = torch.tensor(members)
            pairs = symmetric[:, rows[:, None], rows].flatten(1)
            kernel = _sum_by_lag(pairs, _LAG_OF_EDGE_PAIR, 5)[:, None]
            bias = grad_first[:, members].sum(1)
            edge = F.conv1d(x.select(axis, index), kernel, bias, padding=2, groups=channels)
            grad.select(axis, index).sub_(edge)
        for row, column, k in _CORNERS:
            grad[:, :, row, column] += symmetric[:, k, k] * x[:, :, row, column] + grad_first[:, k]
        return grad


def _sum_by_lag(pairs: Tensor, lag_of_pair: Tensor, num_lags: int) -> Tensor:
    return pairs.new_zeros(len(pairs), num_lags).index_add_(1, lag_of_pair.to(pairs.device), pairs)


def _autocorrelation(x: Tensor) -> Tensor:
    """``sum_q x[q] x~[q+d]`` for the 25 lags d of a 5x5 table, (C, 25).

    Two 3x3 correlations, one to the left and one to the right, cover the lags of the lower half,
    much faster than one 5x5 correlation, which has no fast kernel. The upper half is its mirror
    image. The map is processed in bands of rows, so that the zero-padded copies stay in the cache.
    """
    rows = max(1, BAND // max(1, x[:, :, 0].numel()))
    left, right = x.new_zeros(2, x.shape[1], 1, 3, 3)
    for top in range(0, x.shape[2], rows):
        band = x[:, :, top : top + rows]
        below = x[:, :, top : top + rows + 2]
        missing = band.shape[2] + 2 - below.shape[2]
        left += _correlate_by_backward(F.pad(below, (2, 0, 0, missing)), band, 3, 0)  # 0..2, -2..0
        right += _correlate_by_backward(F.pad(below, (0, 2, 0, missing)), band, 3, 0)  # 0..2, 0..2
    lower = torch.cat([left, right[..., 1:]], dim=-1)[:, 0]  # (C, 3, 5)
    upper = lower[:, 1:].flip(1, 2)
    return torch.cat([upper, lower], dim=1).flatten(1)


dispatch.register(
    'branch_statistics',
    lambda x, weights: (x, weights),
    [
        Implementation(
            'moments', lambda inputs: statistics_by_moments(*inputs), _reason_against_moments
        ),
        Implementation('branches', lambda inputs: None),
        Implementation('reference', lambda inputs: reference.branch_statistics(*inputs)),
    ],
)

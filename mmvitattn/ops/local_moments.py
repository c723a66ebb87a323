"""Batch statistics of parallel 3x3 depth-wise convolutions, without computing the convolutions.

An output is linear in the 3x3 neighbourhood of its position, so its mean and variance follow from
the first and second moments of the neighbourhoods, 9 and 81 numbers for each channel, independent
of the number of convolutions.

Shapes: B batch, C channels, H W map, n parallel convolutions. The nine offsets of a 3x3 kernel are
numbered row by row; ``x~`` is the map extended by zeros, I the positions inside it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import dispatch, reference
from .depthwise import channel_sum, correlate_by_backward
from .dispatch import (
    HAS_OPERATORS,
    Implementation,
    is_compiling,
    precise_dtype,
    without_autocast,
)

BAND = 1 << 19  # elements of a map processed at once: 2 MiB, which caches hold
# Positions of a batch for which moments are cheaper than branches; in bfloat16 it needs twice as
# many, as the branches take half the time.
MIN_POSITIONS = 1024
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
    with without_autocast(x):
        moments = local_moments(x)
    # In float64, since the variance is a small difference of large numbers.
    first, second = (moment.double() / count for moment in moments)
    kernels = weights.flatten(2).double()
    mean = torch.einsum('nck,ck->nc', kernels, first)
    mean_square = torch.einsum('nck,ckl,ncl->nc', kernels, second, kernels)
    var = (mean_square - mean.square()).clamp_min(0)
    return mean.to(weights.dtype), var.to(weights.dtype)


def _reason_against_moments(inputs: tuple[Tensor, Tensor]) -> str | None:
    x, _ = inputs
    if x.device.type != 'cpu':
        return 'implemented for CPUs only'
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f'{x.dtype} is slow on CPUs'
    if is_compiling():  # whatever the size: one graph serves all sizes
        return None if HAS_OPERATORS else f'needs PyTorch 2.4, this is {torch.__version__}'
    least = MIN_POSITIONS * (2 if x.dtype == torch.bfloat16 else 1)
    if x.shape[0] * x.shape[2] * x.shape[3] < least:
        return f'the batch has fewer than {least} positions'
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
    if is_compiling():
        return torch.ops.mmvitattn.local_moments_cpu(x)
    return _LocalMoments.apply(x)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    total, autocorrelation = _sum_and_autocorrelation(x)
    first = total[:, None].repeat(1, 9)
    second = autocorrelation[:, _LAG_OF_PAIR].unflatten(1, (9, 9))
    for axis, index, members in _EDGES:
        edge = x.select(axis, index).to(first.dtype)
        first[:, members] -= edge.sum((0, 2))[:, None]
        lags = [
            (edge[..., lag:] * edge[..., : edge.shape[-1] - lag]).sum((0, 2)) for lag in range(3)
        ]
        table = torch.stack([lags[2], lags[1], lags[0], lags[1], lags[2]], dim=1)
        rows = torch.tensor(members)
        second[:, rows[:, None], rows] -= table[:, _LAG_OF_EDGE_PAIR].unflatten(1, (3, 3))
    for row, column, k in _CORNERS:
        corner = x[:, :, row, column].to(first.dtype)
        first[:, k] += corner.sum(0)
        second[:, k, k] += corner.square().sum(0)
    return first, second


def _moments_gradient(grad_first: Tensor, grad_second: Tensor, x: Tensor) -> Tensor:
    channels = x.shape[1]
    grad_first, symmetric = grad_first.to(x.dtype), (grad_second + grad_second.mT).to(x.dtype)
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


class _LocalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return _moments(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> Tensor:
        return _moments_gradient(grad_first, grad_second, *ctx.saved_tensors)


def _sum_by_lag(pairs: Tensor, lag_of_pair: Tensor, num_lags: int) -> Tensor:
    return pairs.new_zeros(len(pairs), num_lags).index_add_(1, lag_of_pair.to(pairs.device), pairs)


def _sum_and_autocorrelation(x: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_q x[q]``, (C,), and ``sum_q x[q] x~[q+d]`` for the lags d of a 5x5 table, (C, 25).

    Two 3x3 correlations, one to the left and one to the right, cover the lags of the lower half,
    much faster than one 5x5 correlation, which has no fast kernel. The upper half is its mirror
    image. Groups of images, or bands of rows of a large one, are processed one after the other, so
    that their zero-padded copies, in float32 at least, stay in the cache.
    """
    dtype = precise_dtype(x)
    total = x.new_zeros(x.shape[1], dtype=dtype)
    left, right = x.new_zeros(2, x.shape[1], 1, 3, 3, dtype=dtype)
    for group in x.split(max(1, BAND // max(1, x[0].numel()))):
        rows = max(1, BAND // max(1, group[:, :, 0].numel()))
        for top in range(0, x.shape[2], rows):
            below = group[:, :, top : top + rows + 2].to(dtype)
            band = below[:, :, :rows]
            missing = band.shape[2] + 2 - below.shape[2]
            below_left, below_right = (F.pad(below, (*p, 0, missing)) for p in ((2, 0), (0, 2)))
            left += correlate_by_backward(below_left, band, 3, 0)  # lags 0..2, -2..0
            right += correlate_by_backward(below_right, band, 3, 0)  # lags 0..2, 0..2
            total += channel_sum(band)
    lower = torch.cat([left, right[..., 1:]], dim=-1)[:, 0]  # (C, 3, 5)
    upper = lower[:, 1:].flip(1, 2)
    return total, torch.cat([upper, lower], dim=1).flatten(1)


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


if HAS_OPERATORS:  # torch.compile calls them as they are, instead of unrolling the loops

    @torch.library.custom_op('mmvitattn::local_moments_cpu', mutates_args=())
    def _operator(x: Tensor) -> tuple[Tensor, Tensor]:
        return _moments(x)

    @_operator.register_fake
    def _(x: Tensor) -> tuple[Tensor, Tensor]:
        first = x.new_empty(x.shape[1], 9, dtype=precise_dtype(x))
        return first, first.new_empty(x.shape[1], 9, 9)

    @torch.library.custom_op('mmvitattn::local_moments_cpu_backward', mutates_args=())
    def _gradient(grad_first: Tensor, grad_second: Tensor, x: Tensor) -> Tensor:
        grad = _moments_gradient(grad_first, grad_second, x)
        return torch.empty_like(x).copy_(grad) if grad.stride() != x.stride() else grad

    @_gradient.register_fake
    def _(grad_first: Tensor, grad_second: Tensor, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def _backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.ops.mmvitattn.local_moments_cpu_backward(*grads, *ctx.saved_tensors)

    def _save_input(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)

    _operator.register_autograd(_backward, setup_context=_save_input)

"""Learned-query attention as a loop over window offsets: exact for scores of any size, anywhere.

Maps are channels-first here: a weight meets the d values of its head without breaking the innermost
axis into pieces of d numbers.

Shapes: B batch, H W grid, C channels, k window side, q learned queries, h heads, d channels of a
head. A prime marks the grid of the output: H' = ceil(H / stride).
"""

from types import EllipsisType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .torch_api import is_exporting

Index = tuple[EllipsisType, slice, slice]


def _overlaps(size: int, kernel_size: int, stride: int) -> list[tuple[slice, slice] | None]:
    """For each window offset on one axis: the outputs it serves, the inputs it reads there.

    ``None`` where the offset lies outside the image for every output.
    """
    overlaps = []
    for offset in range(-(kernel_size // 2), kernel_size // 2 + 1):
        first = max(0, -(offset // stride))
        end = min(-(-size // stride), (size - 1 - offset) // stride + 1)
        start = first * stride + offset
        stop = (end - 1) * stride + offset + 1
        overlaps.append((slice(first, end), slice(start, stop, stride)) if end > first else None)
    return overlaps


def window_offsets(
    height: int, width: int, kernel_size: int, stride: int
) -> list[tuple[int, Index, Index]]:
    """Window offsets with the outputs each serves and the inputs it reads there.

    Slicing to the overlap keeps what lies outside the image out of every sum, without padding.
    """
    offsets = []
    columns = _overlaps(width, kernel_size, stride)
    for i, row in enumerate(_overlaps(height, kernel_size, stride)):
        for j, column in enumerate(columns):
            if row is not None and column is not None:
                outputs = (..., row[0], column[0])
                inputs = (..., row[1], column[1])
                offsets.append((i * kernel_size + j, outputs, inputs))
    return offsets


class OffsetLoop(torch.autograd.Function):
    """Loops over the k*k window offsets, on whole maps.

    Forward: the windows' maxima, the softmax denominators, then the output, one offset at a time.
    Weights are summed over the queries before they meet the values, so the largest map in work has
    C channels. Backward computes the weights again instead of storing k*k maps of them. It works in
    place, so that a second derivative raises. (``once_differentiable`` would say so more clearly,
    but torch.compile of torch 2.1 cannot trace it.)
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        scores: Tensor,
        values: Tensor,
        position_bias: Tensor,
        attention_scale: Tensor,
        kernel_size: int,
        stride: int,
    ) -> Tensor:
        """Scores (B, q, h, H, W), values (B, h, d, H, W), tables (k*k, q, h, 1, 1)."""
        offsets = window_offsets(*scores.shape[3:], kernel_size, stride)
        largest, norm = softmax_terms(scores, position_bias, offsets, stride)
        output = scores.new_zeros(*values.shape[:3], *largest.shape[3:])
        precise_values = values.to(scores.dtype)
        for j, outputs, inputs in offsets:
            weights = softmax_weights(
                scores[inputs], position_bias[j], largest[outputs], norm[outputs]
            )
            weights = weights.mul_(attention_scale[j]).sum(dim=1)
            output[outputs].addcmul_(weights[:, :, None], precise_values[inputs])

        ctx.save_for_backward(scores, values, position_bias, attention_scale, largest, norm)
        ctx.kernel_size, ctx.stride = kernel_size, stride
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients, with p the softmax weights, t the products of ``grad`` with the values.

        ``d scale = p t``, ``d values = grad sum_q p scale`` and ``d (scores + bias) = p (scale t -
        e)`` with ``e = sum_j p scale t``, whose second term needs a second loop.
        """
        scores, values, position_bias, attention_scale, largest, norm = ctx.saved_tensors
        offsets = window_offsets(*scores.shape[3:], ctx.kernel_size, ctx.stride)
        precise_values = values.to(scores.dtype)
        grad_scores, grad_values = torch.zeros_like(scores), torch.zeros_like(precise_values)
        grad_bias, grad_scale = torch.zeros_like(position_bias), torch.zeros_like(attention_scale)
        expected = torch.zeros_like(largest)
        for j, outputs, inputs in offsets:
            weights = softmax_weights(
                scores[inputs], position_bias[j], largest[outputs], norm[outputs]
            )
            products = (grad[outputs] * precise_values[inputs]).sum(dim=2)[:, None] * weights
            grad_scale[j] = _sum_of_maps(products)
            products.mul_(attention_scale[j])
            expected[outputs].add_(products)
            grad_scores[inputs].add_(products)
            grad_bias[j] = _sum_of_maps(products)
            weights = weights.mul_(attention_scale[j]).sum(dim=1)
            grad_values[inputs].addcmul_(weights[:, :, None], grad[outputs])
        for j, outputs, inputs in offsets:
            weights = softmax_weights(
                scores[inputs], position_bias[j], largest[outputs], norm[outputs]
            )
            weights.mul_(expected[outputs])
            grad_scores[inputs].sub_(weights)
            grad_bias[j].sub_(_sum_of_maps(weights))
        return grad_scores, grad_values.to(values.dtype), grad_bias, grad_scale, None, None


def _sum_of_maps(x: Tensor) -> Tensor:
    """Over batch and positions, (q, h, 1, 1)."""
    return x.sum(dim=(0, 3, 4))[..., None, None]


def softmax_terms(
    scores: Tensor, bias: Tensor, offsets: list[tuple[int, Index, Index]], stride: int
) -> tuple[Tensor, Tensor]:
    """Each window's largest score, and what normalises its exponentials, (B, q, h, H', W').

    Args:
        scores: (B, q, h, H, W).
        bias: (k*k, q, h, 1, 1).
        offsets: of :func:`window_offsets`.
        stride: distance of neighbouring windows.
    """
    grid = (-(-size // stride) for size in scores.shape[3:])
    largest = scores.new_full((*scores.shape[:3], *grid), float('-inf'))
    for j, outputs, inputs in offsets:
        largest[outputs].clamp_(min=scores[inputs] + bias[j])
    norm = torch.zeros_like(largest)
    for j, outputs, inputs in offsets:
        norm[outputs].add_(_exponentials(scores[inputs], bias[j], largest[outputs]))
    return largest, norm.reciprocal_()


def _exponentials(scores: Tensor, bias: Tensor, largest: Tensor) -> Tensor:
    # The difference first: it is exact where it matters, whatever the scores' size.
    return (scores - largest).add_(bias).exp_()


def softmax_weights(scores: Tensor, bias: Tensor, largest: Tensor, norm: Tensor) -> Tensor:
    """Softmax weights at one window offset, (B, q, h, rows, columns)."""
    return _exponentials(scores, bias, largest).mul_(norm)


def offset_loop(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    tables = full_tables(scores, position_bias, attention_scale, kernel_size)
    tables = (table[..., None, None] for table in tables)
    maps = (x.permute(0, 3, 4, 1, 2).contiguous() for x in (scores, values))
    return OffsetLoop.apply(*maps, *tables, kernel_size, stride).permute(0, 3, 4, 1, 2)


def full_tables(
    scores: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
) -> tuple[Tensor, Tensor]:
    """Both tables, (k*k, q, h), also where there are none."""
    shape = (kernel_size**2, *scores.shape[3:])
    bias = scores.new_zeros(shape) if position_bias is None else position_bias.to(scores.dtype)
    scale = scores.new_ones(shape) if attention_scale is None else attention_scale.expand(shape)
    return bias, scale.to(scores.dtype)


def can_run(scores: Tensor, *settings: Tensor | None | int) -> str | None:
    """Why the loop cannot take this input, or ``None``; arguments as of the op."""
    return 'a recording would keep its slices for one size' if is_exporting() else None

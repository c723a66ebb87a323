"""Learned-query attention as a loop over window offsets: exact for scores of any size, anywhere.

Shapes: B batch, H W grid, C channels, k window side, q learned queries, h heads, d channels of a
head. A prime marks the grid of the output: H' = ceil(H / stride).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .torch_api import is_exporting

Index = tuple[slice, slice, slice]


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
                outputs = (slice(None), row[0], column[0])
                inputs = (slice(None), row[1], column[1])
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
        """Arguments as of the op, both tables given."""
        offsets = window_offsets(*scores.shape[1:3], kernel_size, stride)
        largest, norm = softmax_terms(scores, position_bias, offsets, stride)
        output = scores.new_zeros(*largest.shape[:3], *values.shape[3:])
        precise_values = values.to(scores.dtype)
        for j, outputs, inputs in offsets:
            weights = softmax_weights(
                scores[inputs], position_bias[j], largest[outputs], norm[outputs]
            )
            weights = weights.mul_(attention_scale[j]).sum(dim=3)
            output[outputs].addcmul_(weights[..., None], precise_values[inputs])

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
        offsets = window_offsets(*scores.shape[1:3], ctx.kernel_size, ctx.stride)
        precise_values = values.to(scores.dtype)
        grad_scores, grad_values = torch.zeros_like(scores), torch.zeros_like(precise_values)
        grad_bias, grad_scale = torch.zeros_like(position_bias), torch.zeros_like(attention_scale)
        expected = torch.zeros_like(largest)
        for j, outputs, inputs in offsets:
            weights = softmax_weights(
                scores[inputs], position_bias[j], largest[outputs], norm[outputs]
            )
            products = (grad[outputs] * precise_values[inputs]).sum(dim=-1)[..., None, :] * weights
            grad_scale[j] = products.sum(dim=(0, 1, 2))
            products.mul_(attention_scale[j])
            expected[outputs].add_(products)
            grad_scores[inputs].add_(products)
            grad_bias[j] = products.sum(dim=(0, 1, 2))
            weights = weights.mul_(attention_scale[j]).sum(dim=3)
            grad_values[inputs].addcmul_(weights[..., None], grad[outputs])
        for j, outputs, inputs in offsets:
            weights = softmax_weights(
                scores[inputs], position_bias[j], largest[outputs], norm[outputs]
            )
            weights.mul_(expected[outputs])
            grad_scores[inputs].sub_(weights)
            grad_bias[j].sub_(weights.sum(dim=(0, 1, 2)))
        return grad_scores, grad_values.to(values.dtype), grad_bias, grad_scale, None, None


def softmax_terms(
    scores: Tensor, bias: Tensor, offsets: list[tuple[int, Index, Index]], stride: int
) -> tuple[Tensor, Tensor]:
    """Each window's largest score, and what normalises its exponentials, (B, H', W', q, h)."""
    batch, height, width, queries, heads = scores.shape
    grid = (batch, -(-height // stride), -(-width // stride))
    largest = scores.new_full((*grid, queries, heads), float('-inf'))
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
    """Softmax weights at one window offset, (B, rows, columns, q, h)."""
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
    bias, scale = full_tables(scores, position_bias, attention_scale, kernel_size)
    return OffsetLoop.apply(scores, values, bias, scale, kernel_size, stride)


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

"""Learned-query attention as a loop over window offsets: exact for any scores, on any device.

Maps are channels-first here: a weight is then multiplied by the d values of its head without
splitting the innermost axis into pieces of d numbers.

Shapes as in :mod:`mmvitattn.ops.learned_query`.
"""

from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dispatch import is_exporting

if TYPE_CHECKING:
    from . import LearnedQueryInputs

Index = tuple[EllipsisType, slice, slice]
Offset = tuple[int, Index, Index]  # its index, the outputs that use it, the inputs they read


def reason_not_to_run(inputs: 'LearnedQueryInputs') -> str | None:
    """Why the loop cannot take this input, or ``None``."""
    if is_exporting():
        return 'tracing would hard-code the slice bounds of this input size'
    return None


def run(inputs: 'LearnedQueryInputs') -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    return _OffsetLoop.apply(*_maps(inputs), *inputs[4:]).permute(0, 3, 4, 1, 2)


def gradients(grad: Tensor, inputs: 'LearnedQueryInputs') -> list[Tensor]:
    """Gradients of scores, values, bias and scale, for the gradient of the output."""
    scores, values, bias, scale = _maps(inputs)
    offsets = _window_offsets(scores, *inputs[4:])
    terms = _softmax_terms(scores, bias, offsets, inputs.stride)
    grad = grad.permute(0, 3, 4, 1, 2)
    grad_scores, grad_values, *grads = _gradients(
        grad, scores, values, bias, scale, *terms, offsets
    )
    maps = [x.permute(0, 3, 4, 1, 2) for x in (grad_scores, grad_values)]
    return maps + [x[..., 0, 0] for x in grads]


def _maps(inputs: 'LearnedQueryInputs') -> list[Tensor]:
    """Scores (B, q, h, H, W), values (B, h, d, H, W), tables (k*k, q, h, 1, 1)."""
    maps = [x.permute(0, 3, 4, 1, 2).contiguous() for x in inputs[:2]]
    return maps + [table[..., None, None] for table in inputs[2:4]]


class _OffsetLoop(torch.autograd.Function):
    """Loops over the k*k window offsets, on whole maps.

    Forward: the windows' maxima, the softmax denominators, then the output, one offset at a time.
    Weights are summed over the queries before they are multiplied by the values, so no map has more
    than h * d channels. Backward recomputes the weights instead of storing k*k maps of them. It
    works in place, so a second derivative raises an error. (``once_differentiable`` would give a
    clearer one, but torch.compile of torch 2.1 cannot trace it.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        values: Tensor,
        bias: Tensor,
        scale: Tensor,
        kernel_size: int,
        stride: int,
    ) -> Tensor:
        offsets = _window_offsets(scores, kernel_size, stride)
        largest, norm = _softmax_terms(scores, bias, offsets, stride)
        output = scores.new_zeros(*values.shape[:3], *largest.shape[3:])
        precise_values = values.to(scores.dtype)
        for j, outputs, inputs in offsets:
            weights = _exponentials(scores[inputs], bias[j], largest[outputs])
            weights = weights.mul_(norm[outputs]).mul_(scale[j]).sum(dim=1)
            output[outputs].addcmul_(weights[:, :, None], precise_values[inputs])

        ctx.save_for_backward(scores, values, bias, scale, largest, norm)
        ctx.kernel_size, ctx.stride = kernel_size, stride
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, values, bias, scale, largest, norm = ctx.saved_tensors
        offsets = _window_offsets(scores, ctx.kernel_size, ctx.stride)
        grads = _gradients(grad, scores, values, bias, scale, largest, norm, offsets)
        return *grads, None, None


def _gradients(
    grad: Tensor,
    scores: Tensor,
    values: Tensor,
    bias: Tensor,
    scale: Tensor,
    largest: Tensor,
    norm: Tensor,
    offsets: list[Offset],
) -> tuple[Tensor, ...]:
    """Gradients, with p the softmax weights and t the products of ``grad`` with the values.

    ``d scale = p t``, ``d values = grad sum_q p scale`` and ``d (scores + bias) = p (scale t - e)``
    with ``e = sum_j p scale t``, whose second term needs a second loop.
    """
    precise_values = values.to(scores.dtype)
    grad_scores, grad_values = torch.zeros_like(scores), torch.zeros_like(precise_values)
    grad_bias, grad_scale = torch.zeros_like(bias), torch.zeros_like(scale)
    expected = torch.zeros_like(largest)
    for j, outputs, inputs in offsets:
        weights = _exponentials(scores[inputs], bias[j], largest[outputs]).mul_(norm[outputs])
        products = (grad[outputs] * precise_values[inputs]).sum(dim=2)[:, None] * weights
        grad_scale[j] = _sum_of_maps(products)
        products.mul_(scale[j])
        expected[outputs].add_(products)
        grad_scores[inputs].add_(products)
        grad_bias[j] = _sum_of_maps(products)
        weights = weights.mul_(scale[j]).sum(dim=1)
        grad_values[inputs].addcmul_(weights[:, :, None], grad[outputs])
    for j, outputs, inputs in offsets:
        weights = _exponentials(scores[inputs], bias[j], largest[outputs]).mul_(norm[outputs])
        weights.mul_(expected[outputs])
        grad_scores[inputs].sub_(weights)
        grad_bias[j].sub_(_sum_of_maps(weights))
    return grad_scores, grad_values.to(values.dtype), grad_bias, grad_scale


def _window_offsets(scores: Tensor, kernel_size: int, stride: int) -> list[Offset]:
    """The window offsets, for maps (B, q, h, H, W).

    Only positions inside the image are listed, so that nothing needs padding.
    """
    # A list: torch.compile of torch 2.1 cannot unpack a generator.
    rows, columns = [_overlaps(size, kernel_size, stride) for size in scores.shape[3:]]
    return [
        (i * kernel_size + j, (..., row[0], column[0]), (..., row[1], column[1]))
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if row is not None and column is not None
    ]


def _overlaps(size: int, kernel_size: int, stride: int) -> list[tuple[slice, slice] | None]:
    """For each window offset on one axis: the outputs that use it and the inputs they read.

    ``None`` if the offset lies outside the image for every output.
    """
    overlaps = []
    for offset in range(-(kernel_size // 2), kernel_size // 2 + 1):
        first = max(0, -(offset // stride))
        end = min((size - 1) // stride + 1, (size - 1 - offset) // stride + 1)
        start = first * stride + offset
        stop = (end - 1) * stride + offset + 1
        overlaps.append((slice(first, end), slice(start, stop, stride)) if end > first else None)
    return overlaps


def _softmax_terms(
    scores: Tensor, bias: Tensor, offsets: list[Offset], stride: int
) -> tuple[Tensor, Tensor]:
    """Each window's largest score and reciprocal softmax denominator, (B, q, h, H', W')."""
    grid = [(size - 1) // stride + 1 for size in scores.shape[3:]]
    largest = scores.new_full((*scores.shape[:3], *grid), float('-inf'))
    for j, outputs, inputs in offsets:
        largest[outputs].clamp_(min=scores[inputs] + bias[j])
    norm = torch.zeros_like(largest)
    for j, outputs, inputs in offsets:
        norm[outputs].add_(_exponentials(scores[inputs], bias[j], largest[outputs]))
    return largest, norm.reciprocal_()


def _exponentials(scores: Tensor, bias: Tensor, largest: Tensor) -> Tensor:
    # The difference first: near the maximum it is exact, however large the scores are.
    return (scores - largest).add_(bias).exp_()


def _sum_of_maps(x: Tensor) -> Tensor:
    """Sum over batch and positions, (q, h, 1, 1)."""
    return x.sum(dim=(0, 3, 4))[..., None, None]

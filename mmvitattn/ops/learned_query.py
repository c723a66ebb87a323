"""Learned-query attention (QnA): overlapping windows with queries that all positions share.

Shapes: B batch, H W grid, C channels, k window side, q learned queries, h heads, d channels of a
head. A prime marks the grid of the output: H' = ceil(H / stride).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import dispatch, reference
from .precision import precise_dtype, without_autocast

NORM_EPS = 1e-6  # added to the queries' norm, as in the official release


def learned_query_scores(
    x: Tensor, query: Tensor, key_weight: Tensor, normalize: bool = True
) -> Tensor:
    """Products of the learned queries with the keys, which are never built.

    All positions share the queries, so ``query Wk^T`` is folded into one (C, q*h) map first (QnA
    paper, section 4.2). Computed in float32 (or the input's precision if higher), also under
    autocast: half-precision scores would overflow, and round away what the softmax needs.

    Args:
        x: input, (B, H, W, C).
        query: learned queries, (q, h, d).
        key_weight: weight of the keys' projection, (h * d, C).
        normalize: whether each query is divided by its L2 norm.

    Returns:
        Scores, (B, H, W, q, h), divided by sqrt(d).
    """
    heads, dim = query.shape[1:]
    with without_autocast(x):
        precise = precise_dtype(x)
        query, key_weight = query.to(precise), key_weight.to(precise)
        if normalize:
            query = query / (torch.linalg.vector_norm(query, dim=-1, keepdim=True) + NORM_EPS)
        keys = key_weight.unflatten(0, (heads, dim))
        folded = torch.einsum('qhd,hdc->qhc', query * dim**-0.5, keys)
        return F.linear(x.to(precise), folded.flatten(0, 1)).unflatten(-1, folded.shape[:2])


def learned_query_attention(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int = 1,
) -> Tensor:
    """Attends from learned queries to the k x k window around each output position.

    For each query and head, with j over the positions of the window that lie inside the image,
    ``o = sum_j softmax_j(scores + position_bias)_j attention_scale_j values_j``; the scale is no
    part of the softmax. The results of the q queries are summed (QnA paper, section 4; the scale is
    the official release's). Exact for scores of any size: only a window's own maximum is
    subtracted. The arithmetic is in float32 (or higher, if the input is), also under autocast.

    Args:
        scores: query-key products, (B, H, W, q, h), e.g. of :func:`learned_query_scores`.
        values: values, (B, H, W, h, d).
        position_bias: (k*k, q, h), window offsets row by row, or None.
        attention_scale: (k*k, q, h), or (1, q, h) for all offsets alike, or None.
        kernel_size: odd side k of the window, in positions; may exceed the image.
        stride: distance of neighbouring windows, in positions.

    Returns:
        Output, (B, H', W', h, d), in the values' dtype.

    Raises:
        ValueError: if the shapes do not fit each other, or for an even window.
    """
    _check(scores, values, position_bias, attention_scale, kernel_size, stride)
    implementation = dispatch.choose('learned_query_attention', scores)
    with without_autocast(scores):
        precise = precise_dtype(scores, values)
        tables = (t if t is None else t.to(precise) for t in (position_bias, attention_scale))
        output = implementation(scores.to(precise), values, *tables, kernel_size, stride)
    return output.to(values.dtype)


def _check(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> None:
    name = 'learned_query_attention'
    if kernel_size < 1 or kernel_size % 2 == 0 or stride < 1:
        raise ValueError(
            f'{name}: kernel_size must be odd and stride at least 1, got kernel_size={kernel_size} '
            f'and stride={stride}'
        )
    if scores.dim() != 5 or values.dim() != 5 or scores.shape[:3] != values.shape[:3]:
        raise ValueError(
            f'{name}: scores must be (B, H, W, q, h) and values (B, H, W, h, d), got '
            f'{tuple(scores.shape)} and {tuple(values.shape)}'
        )
    queries, heads = scores.shape[3:]
    if values.shape[3] != heads:
        raise ValueError(f'{name}: scores have {heads} heads, values {values.shape[3]}')
    full, uniform = (kernel_size**2, queries, heads), (1, queries, heads)
    if position_bias is not None and position_bias.shape != full:
        raise ValueError(f'{name}: position_bias must be {full}, got {tuple(position_bias.shape)}')
    if attention_scale is not None and attention_scale.shape not in (full, uniform):
        raise ValueError(
            f'{name}: attention_scale must be {full} or {uniform}, '
            f'got {tuple(attention_scale.shape)}'
        )


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


def _offsets(
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


class _OffsetLoop(torch.autograd.Function):
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
        batch, height, width, queries, heads = scores.shape
        grid = (batch, -(-height // stride), -(-width // stride))
        offsets = _offsets(height, width, kernel_size, stride)

        largest = scores.new_full((*grid, queries, heads), float('-inf'))
        for j, outputs, inputs in offsets:
            largest[outputs].clamp_(min=scores[inputs] + position_bias[j])

        norm = torch.zeros_like(largest)
        for j, outputs, inputs in offsets:
            norm[outputs].add_(_exponentials(scores[inputs], position_bias[j], largest[outputs]))
        norm.reciprocal_()

        output = scores.new_zeros(*grid, heads, values.shape[-1])
        precise_values = values.to(scores.dtype)
        for j, outputs, inputs in offsets:
            weights = _weights(scores[inputs], position_bias[j], largest[outputs], norm[outputs])
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
        offsets = _offsets(*scores.shape[1:3], ctx.kernel_size, ctx.stride)
        precise_values = values.to(scores.dtype)
        grad_scores, grad_values = torch.zeros_like(scores), torch.zeros_like(precise_values)
        grad_bias, grad_scale = torch.zeros_like(position_bias), torch.zeros_like(attention_scale)
        expected = torch.zeros_like(largest)
        for j, outputs, inputs in offsets:
            weights = _weights(scores[inputs], position_bias[j], largest[outputs], norm[outputs])
            products = (grad[outputs] * precise_values[inputs]).sum(dim=-1)[..., None, :] * weights
            grad_scale[j] = products.sum(dim=(0, 1, 2))
            products.mul_(attention_scale[j])
            expected[outputs].add_(products)
            grad_scores[inputs].add_(products)
            grad_bias[j] = products.sum(dim=(0, 1, 2))
            weights = weights.mul_(attention_scale[j]).sum(dim=3)
            grad_values[inputs].addcmul_(weights[..., None], grad[outputs])
        for j, outputs, inputs in offsets:
            weights = _weights(scores[inputs], position_bias[j], largest[outputs], norm[outputs])
            weights.mul_(expected[outputs])
            grad_scores[inputs].sub_(weights)
            grad_bias[j].sub_(weights.sum(dim=(0, 1, 2)))
        return grad_scores, grad_values.to(values.dtype), grad_bias, grad_scale, None, None


def _exponentials(scores: Tensor, bias: Tensor, largest: Tensor) -> Tensor:
    # The difference first: it is exact where it matters, whatever the scores' size.
    return (scores - largest).add_(bias).exp_()


def _weights(scores: Tensor, bias: Tensor, largest: Tensor, norm: Tensor) -> Tensor:
    """Softmax weights at one window offset, (B, rows, columns, q, h)."""
    return _exponentials(scores, bias, largest).mul_(norm)


def _offset_loop(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> Tensor:
    shape = (kernel_size**2, *scores.shape[3:])
    bias = scores.new_zeros(shape) if position_bias is None else position_bias
    scale = scores.new_ones(shape) if attention_scale is None else attention_scale.expand(shape)
    return _OffsetLoop.apply(scores, values, bias, scale, kernel_size, stride)


def _reference(scores: Tensor, values: Tensor, *settings: Tensor | None | int) -> Tensor:
    return reference.learned_query_attention(scores, values.to(scores.dtype), *settings)


dispatch.register('learned_query_attention', 'offset_loop', _offset_loop)
dispatch.register('learned_query_attention', 'reference', _reference)

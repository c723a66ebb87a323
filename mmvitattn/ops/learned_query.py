"""Learned-query attention (QnA): overlapping windows with queries that all positions share.

Shapes: B batch, H W grid, C channels, k window side, q learned queries, h heads, d channels of a
head. A prime marks the grid of the output: H' = ceil(H / stride).
"""

import torch
from torch import Tensor

from . import dispatch, reference
from .learned_query_conv import can_run as conv_can_run
from .learned_query_conv import convolution
from .learned_query_loop import can_run as loop_can_run
from .learned_query_loop import (
    full_tables,
    offset_loop,
    softmax_terms,
    softmax_weights,
    window_offsets,
)
from .learned_query_stack import window_stack
from .precision import precise_dtype, without_autocast
from .projection import project_in

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
            query = normalize_queries(query)
        keys = key_weight.unflatten(0, (heads, dim))
        folded = torch.einsum('qhd,hdc->qhc', query * dim**-0.5, keys)
        return project_in(x.to(precise), folded.flatten(0, 1)).unflatten(-1, folded.shape[:2])


def normalize_queries(query: Tensor, stop_gradient: bool = False) -> Tensor:
    """Divides each learned query by its L2 norm, in at least float32, also under autocast.

    Args:
        query: learned queries, (q, h, d).
        stop_gradient: whether the norm counts as a constant in the backward pass.

    Returns:
        Queries of the same shape.
    """
    with without_autocast(query):
        query = query.to(precise_dtype(query))
        norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)
        return query / ((norm.detach() if stop_gradient else norm) + NORM_EPS)


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
    with without_autocast(scores):
        precise = precise_dtype(scores, values)
        tables = (t if t is None else t.to(precise) for t in (position_bias, attention_scale))
        args = (scores.to(precise), values, *tables, kernel_size, stride)
        output = dispatch.choose('learned_query_attention', *args)(*args)
    return output.to(values.dtype)


def window_weights(
    scores: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int = 1,
) -> Tensor:
    """The factors by which :func:`learned_query_attention` multiplies the values of each window.

    Softmax weights times the attention scale, summed over the queries, which share the values; the
    scale can make them negative.

    Args:
        scores: query-key products, (B, H, W, q, h).
        position_bias: (k*k, q, h), or None.
        attention_scale: (k*k, q, h) or (1, q, h), or None.
        kernel_size: odd side k of the window, in positions.
        stride: distance of neighbouring windows, in positions.

    Returns:
        Factors, (B, H', W', k*k, h), window offsets row by row; zero outside the image.

    Raises:
        ValueError: if the shapes do not fit each other, or for an even window.
    """
    shape_of_values = scores.transpose(3, 4)
    _check(scores, shape_of_values, position_bias, attention_scale, kernel_size, stride)
    with without_autocast(scores):
        scores = scores.to(precise_dtype(scores))
        bias, scale = full_tables(scores, position_bias, attention_scale, kernel_size)
        bias, scale = bias[..., None, None], scale[..., None, None]
        scores = scores.permute(0, 3, 4, 1, 2)
        offsets = window_offsets(*scores.shape[3:], kernel_size, stride)
        largest, norm = softmax_terms(scores, bias, offsets, stride)
        batch, _, heads, *grid = largest.shape
        factors = scores.new_zeros(batch, kernel_size**2, heads, *grid)
        for j, outputs, inputs in offsets:
            weights = softmax_weights(scores[inputs], bias[j], largest[outputs], norm[outputs])
            factors[:, j][outputs] = (weights * scale[j]).sum(dim=1)
    return factors.permute(0, 3, 4, 1, 2)


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


def _reference(scores: Tensor, values: Tensor, *settings: Tensor | None | int) -> Tensor:
    return reference.learned_query_attention(scores, values.to(scores.dtype), *settings)


dispatch.register('learned_query_attention', 'convolution', convolution, conv_can_run)
dispatch.register('learned_query_attention', 'offset_loop', offset_loop, loop_can_run)
dispatch.register('learned_query_attention', 'window_stack', window_stack)
dispatch.register('learned_query_attention', 'reference', _reference)

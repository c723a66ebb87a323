"""Learned-query attention (QnA): overlapping windows with queries that all positions share.

Shapes: B batch, H W grid, C channels, k window side, q learned queries, h heads, d channels of a
head. A prime marks the grid of the output: H' = ceil(H / stride).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch, reference
from ..dispatch import Implementation, precise_dtype, without_autocast
from ..triton_support import triton_implementation
from . import conditional, convolution, offset_loop, operator, window_stack
from .convolution import project_in

NORM_EPS = 1e-6  # added to the queries' norm, as in the official release


class LearnedQueryInputs(NamedTuple):
    """Arguments of :func:`learned_query_attention` as its implementations take them.

    All but the values are in the precision of the computation.
    """

    scores: Tensor  # (B, H, W, q, h)
    values: Tensor  # (B, H, W, h, d)
    bias: Tensor  # (k*k, q, h): zeros if there is none
    scale: Tensor  # (k*k, q, h): ones if there is none
    kernel_size: int
    stride: int


def learned_query_scores(
    x: Tensor, query: Tensor, key_weight: Tensor, normalize: bool = True
) -> Tensor:
    """Products of the learned queries with the keys, without computing the keys.

    All positions share the queries, so ``query Wk^T`` is folded into one (C, q*h) map first (QnA
    paper, section 4.2). Computed in float32 (or the input's precision if higher), also under
    autocast: half-precision scores could overflow or lose the digits that the softmax needs.

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
    ``o = sum_j softmax_j(scores + position_bias)_j attention_scale_j values_j``; the scale is not
    part of the softmax. The results of the q queries are summed (QnA paper, section 4; the scale
    comes from the official release). Exact for scores of any magnitude. Computed in float32 (or the
    input's precision if higher), also under autocast.

    Args:
        scores: query-key products, (B, H, W, q, h), e.g. of :func:`learned_query_scores`.
        values: values, (B, H, W, h, d).
        position_bias: (k*k, q, h), window offsets row by row, or None.
        attention_scale: (k*k, q, h), or (1, q, h) if all offsets share it, or None.
        kernel_size: odd side k of the window, in positions; may exceed the image.
        stride: distance between neighbouring windows, in positions.

    Returns:
        Output, (B, H', W', h, d), in the values' dtype.

    Raises:
        ValueError: if the shapes do not match, or for an even window.
    """
    with without_autocast(scores):
        inputs = _inputs(scores, values, position_bias, attention_scale, kernel_size, stride)
        return dispatch.run('learned_query_attention', inputs).to(values.dtype)


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
        stride: distance between neighbouring windows, in positions.

    Returns:
        Factors, (B, H', W', k*k, h), window offsets row by row; zero outside the image.

    Raises:
        ValueError: if the shapes do not match, or for an even window.
    """
    with without_autocast(scores):
        values = scores.transpose(3, 4)  # only its shape is used
        inputs = _inputs(scores, values, position_bias, attention_scale, kernel_size, stride)
        return window_stack.window_weights(inputs).movedim(0, 3)


def _inputs(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> LearnedQueryInputs:
    """Checks the arguments of :func:`learned_query_attention`, completes and converts them."""
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
    dtype = precise_dtype(scores, values)
    bias = scores.new_zeros(full) if position_bias is None else position_bias
    scale = scores.new_ones(full) if attention_scale is None else attention_scale
    scale = scale if scale.shape == full else scale.expand(full)
    return LearnedQueryInputs(
        scores.to(dtype), values, bias.to(dtype), scale.to(dtype), kernel_size, stride
    )


def _reference(inputs: LearnedQueryInputs) -> Tensor:
    return reference.learned_query_attention(
        *inputs._replace(values=inputs.values.to(inputs.scores.dtype))
    )


dispatch.register(
    'learned_query_attention',
    _inputs,
    [
        Implementation('convolution', convolution.run, convolution.reason_not_to_run),
        triton_implementation(f'{__name__}.triton'),
        Implementation(
            'operator', operator.run, operator.reason_not_to_run, operator.reason_not_to_prefer
        ),
        Implementation('offset_loop', offset_loop.run, offset_loop.reason_not_to_run),
        Implementation('conditional', conditional.run, conditional.reason_not_to_run),
        Implementation('window_stack', window_stack.run),
        Implementation('reference', _reference),
    ],
)

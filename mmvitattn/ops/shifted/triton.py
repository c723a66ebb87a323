"""Pooling of each patch's shifted variants, on the GPU.

Forward, a program pools a block of patches for one head, with a running maximum over the variants:
the weights exist only in registers. The backward pass writes the weights and the gradients of the
scores, T numbers each for a patch and head; a second kernel computes the gradient of the variants
from them.

Shapes as in :mod:`mmvitattn.ops.shifted`.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_blocks import Blocks, launch_with_blocks
from ..triton_support import LOWEST, MAX_OFFSET, only_interpreted, save_inputs, unsupported
from . import folded

if TYPE_CHECKING:
    from . import LocalShiftInputs

BLOCKS = Blocks(2048)  # unless searched for; elements of one variant in one program
MAX_CHANNELS = 2048
MAX_VARIANTS = 64
_LOWEST = tl.constexpr(LOWEST)


def reason_not_to_run(inputs: 'LocalShiftInputs') -> str | None:
    """Why the kernels cannot take this input, or ``None``."""
    x = inputs.x
    reason = unsupported(x)
    if reason is not None:
        return reason
    if x.shape[-1] > MAX_CHANNELS or len(x) > MAX_VARIANTS:
        return f'more than {MAX_CHANNELS} channels or {MAX_VARIANTS} variants'
    if math.prod(x.shape[1:]) > MAX_OFFSET:
        return 'one variant has more than 2^31 elements'
    return None


def reason_not_to_prefer(inputs: 'LocalShiftInputs') -> str | None:
    """Why another implementation is faster, or ``None``."""
    return only_interpreted(inputs.x)


def run(inputs: 'LocalShiftInputs') -> Tensor:
    """See :func:`mmvitattn.ops.local_shift_attention`."""
    return folded.run(inputs, pool_variants)


def pool_variants(x: Tensor, queries: Tensor) -> Tensor:
    """Means of the variants of each patch, weighted by the softmax of their products with queries.

    Args:
        x: variants, (T, N, C), in float32, bfloat16 or float16.
        queries: one for each head and patch, (h, N, C), in float32.

    Returns:
        Means, (h, N, C), in the dtype of ``x``; differentiable once.
    """
    return torch.ops.mmvitattn.pool_variants(x, queries)


@triton.jit
def _block(count, INNER: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_C: tl.constexpr):  # fmt: skip
    """A program's index below ``INNER``, its patches, their offsets in a map, and a mask."""
    program = tl.program_id(0)
    patch = (program // INNER).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    at = patch[:, None] * CHANNELS + channel[None, :]
    mask = (patch < count)[:, None] & (channel < CHANNELS)[None, :]
    return (program % INNER).to(tl.int64), patch, at, mask


@triton.jit(do_not_specialize=['count'])
def _pool(
    x, queries, means, count, VARIANTS: tl.constexpr, HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Means of a block of patches for one head."""
    head, patch, at, mask = _block(count, HEADS, CHANNELS, BLOCK_N, BLOCK_C)
    query = tl.load(queries + head * (count * CHANNELS) + at, mask=mask, other=0.0)
    largest = tl.full((BLOCK_N,), _LOWEST, tl.float32)
    norm = tl.zeros((BLOCK_N,), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    variant = x + at
    for _ in range(VARIANTS):
        row = tl.load(variant, mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(row * query, axis=1)
        previous = largest
        largest = tl.maximum(largest, score)
        decay, weight = tl.exp(previous - largest), tl.exp(score - largest)
        norm = norm * decay + weight
        total = total * decay[:, None] + weight[:, None] * row
        variant += count * CHANNELS
    mean = (total / norm[:, None]).to(means.dtype.element_ty)
    tl.store(means + head * (count * CHANNELS) + at, mean, mask=mask)


@triton.jit(do_not_specialize=['count'])
def _differentiate_queries(
    grad, x, queries, grad_queries, weights, grad_scores, count,
    VARIANTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Softmax weights, gradients of scores and queries, for a block of patches and one head."""
    head, patch, at, mask = _block(count, HEADS, CHANNELS, BLOCK_N, BLOCK_C)
    query = tl.load(queries + head * (count * CHANNELS) + at, mask=mask, other=0.0)
    direction = tl.load(grad + head * (count * CHANNELS) + at, mask=mask, other=0.0).to(tl.float32)
    column = tl.arange(0, BLOCK_T)[None, :]
    scores = tl.full((BLOCK_N, BLOCK_T), float('-inf'), tl.float32)
    products = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    variant = x + at
    for t in range(VARIANTS):
        row = tl.load(variant, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(column == t, tl.sum(row * query, axis=1)[:, None], scores)
        products = tl.where(column == t, tl.sum(row * direction, axis=1)[:, None], products)
        variant += count * CHANNELS
    weight = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weight /= tl.sum(weight, axis=1)[:, None]
    expected = tl.sum(weight * products, axis=1)[:, None]
    from_score = weight * (products - expected)
    entry = (head * count + patch)[:, None] * VARIANTS + column
    entry_mask = (patch < count)[:, None] & (column < VARIANTS)
    tl.store(weights + entry, weight, mask=entry_mask)
    tl.store(grad_scores + entry, from_score, mask=entry_mask)

    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    variant = x + at
    for t in range(VARIANTS):
        row = tl.load(variant, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(column == t, from_score, 0.0), axis=1)[:, None] * row
        variant += count * CHANNELS
    tl.store(grad_queries + head * (count * CHANNELS) + at, total, mask=mask)


@triton.jit(do_not_specialize=['count'])
def _differentiate_variants(
    grad, queries, weights, grad_scores, grad_x, count,
    VARIANTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of one variant for a block of patches, summed over the heads."""
    t, patch, at, mask = _block(count, VARIANTS, CHANNELS, BLOCK_N, BLOCK_C)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    entry = patch * VARIANTS + t
    source = at
    for _ in range(HEADS):
        weight = tl.load(weights + entry, mask=patch < count, other=0.0)[:, None]
        from_score = tl.load(grad_scores + entry, mask=patch < count, other=0.0)[:, None]
        direction = tl.load(grad + source, mask=mask, other=0.0).to(tl.float32)
        query = tl.load(queries + source, mask=mask, other=0.0)
        total += weight * direction + from_score * query
        entry += count * VARIANTS
        source += count * CHANNELS
    tl.store(grad_x + t * (count * CHANNELS) + at, total.to(grad_x.dtype.element_ty), mask=mask)


def _settings(x: Tensor, queries: Tensor) -> dict[str, int]:
    """The kernels' compile-time arguments, but for the patches of a block."""
    block_c = triton.next_power_of_2(x.shape[2])
    return dict(VARIANTS=len(x), HEADS=len(queries), CHANNELS=x.shape[2], BLOCK_C=block_c)


def _options(blocks: Blocks, settings: dict[str, int]) -> dict[str, int]:
    block_n = max(1, blocks.elements // settings['BLOCK_C'])
    return dict(**settings, BLOCK_N=block_n, num_warps=blocks.warps)


@torch.library.custom_op(
    'mmvitattn::pool_variants', mutates_args=(), schema='(Tensor x, Tensor queries) -> Tensor'
)
def _pool_variants(x: Tensor, queries: Tensor) -> Tensor:
    x, queries = x.contiguous(), queries.contiguous()
    count, settings = x.shape[1], _settings(x, queries)

    def launch(blocks: Blocks) -> Tensor:
        means, options = x.new_empty(queries.shape), _options(blocks, settings)
        num_blocks = -(-count // options['BLOCK_N'])
        _pool[(num_blocks * len(queries),)](x, queries, means, count, **options)
        return means

    return launch_with_blocks('pool_variants', launch, BLOCKS, x, settings)


@_pool_variants.register_fake
def _(x: Tensor, queries: Tensor) -> Tensor:
    return x.new_empty(queries.shape)


@torch.library.custom_op(
    'mmvitattn::pool_variants_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor x, Tensor queries) -> (Tensor, Tensor)',
)
def _pool_variants_backward(grad: Tensor, x: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    grad, x, queries = grad.contiguous(), x.contiguous(), queries.contiguous()
    count, settings = x.shape[1], _settings(x, queries)

    def launch(blocks: Blocks) -> tuple[Tensor, Tensor]:
        options = _options(blocks, settings)
        num_blocks = -(-count // options['BLOCK_N'])
        grad_x, grad_queries = torch.empty_like(x), torch.empty_like(queries)
        weights, grad_scores = queries.new_empty(2, len(queries), count, len(x))
        _differentiate_queries[(num_blocks * len(queries),)](
            *(grad, x, queries, grad_queries, weights, grad_scores, count),
            **options,
            BLOCK_T=triton.next_power_of_2(len(x)),
        )
        _differentiate_variants[(num_blocks * len(x),)](
            grad, queries, weights, grad_scores, grad_x, count, **options
        )
        return grad_x, grad_queries

    return launch_with_blocks('pool_variants_backward', launch, BLOCKS, x, settings)


@_pool_variants_backward.register_fake
def _(grad: Tensor, x: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), queries.new_empty(queries.shape)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.mmvitattn.pool_variants_backward(grad, *ctx.saved_tensors)


_pool_variants.register_autograd(_backward, setup_context=save_inputs)

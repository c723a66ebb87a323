"""The saliency-weighted means of key-only attention on the GPU, in one pass over x.

Each program handles one head and a part of the positions, with a running maximum; a second kernel
combines the parts. The backward pass is one pass over x as well.

Shapes as in :mod:`mmvitattn.ops.key_only`.
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
    from . import KeyOnlyInputs

BLOCKS = Blocks(4096)  # unless searched for; elements of x in one step of a program
MAX_CHANNELS = 4096
MAX_PARTS = 64  # of the positions of one image
NUM_PROGRAMS = 1024  # enough to fill a large GPU
_LOWEST = tl.constexpr(LOWEST)


def reason_not_to_run(inputs: 'KeyOnlyInputs') -> str | None:
    """Why the kernels cannot take this input, or ``None``."""
    reason = unsupported(inputs.x)
    if reason is not None:
        return reason
    if inputs.x.shape[2] > MAX_CHANNELS:
        return f'more than {MAX_CHANNELS} channels'
    if math.prod(inputs.x.shape[1:]) > MAX_OFFSET:
        return 'one image has more than 2^31 elements'
    return None


def reason_not_to_prefer(inputs: 'KeyOnlyInputs') -> str | None:
    """Why another implementation is faster, or ``None``."""
    return only_interpreted(inputs.x) or folded.reason_not_to_prefer(inputs)


def run(inputs: 'KeyOnlyInputs') -> Tensor:
    """See :func:`mmvitattn.ops.key_only_attention`."""
    return folded.run(inputs, saliency_means)


def saliency_means(x: Tensor, vectors: Tensor) -> Tensor:
    """Means of ``x`` over the positions, weighted by ``softmax(x vectors^T)``, one for each head.

    Args:
        x: (B, N, C), in float32, bfloat16 or float16.
        vectors: (h, C), in float32.

    Returns:
        Means in float32, (B, h, C), differentiable once.
    """
    return torch.ops.mmvitattn.saliency_means(x, vectors)[0]


@triton.jit(do_not_specialize=['count', 'parts', 'steps'])
def _sum_part(
    x, vectors, part_sums, part_maxima, part_norms, count, parts, steps,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One head's sums over the positions of one part; each row of the block has its own maximum."""
    program = tl.program_id(0)
    head, part = program % HEADS, program // HEADS
    image = (part // parts).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    channel_ok = channel < CHANNELS
    vector = tl.load(vectors + head * CHANNELS + channel, mask=channel_ok, other=0.0)[None, :]
    x += image * (count * CHANNELS)
    largest = tl.full((BLOCK_N,), _LOWEST, tl.float32)
    norm = tl.zeros((BLOCK_N,), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    first = (part % parts) * steps * BLOCK_N
    for step in range(steps):
        position = first + step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (position < count)[:, None] & channel_ok[None, :]
        at = position[:, None] * CHANNELS + channel[None, :]
        row = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        score = tl.where(position < count, tl.sum(row * vector, axis=1), float('-inf'))
        previous = largest
        largest = tl.maximum(largest, score)
        decay, weight = tl.exp(previous - largest), tl.exp(score - largest)
        norm = norm * decay + weight
        total = total * decay[:, None] + weight[:, None] * row
    part_largest = tl.max(largest, axis=0)
    weight = tl.exp(largest - part_largest)
    result = part.to(tl.int64) * HEADS + head
    tl.store(part_maxima + result, part_largest)
    tl.store(part_norms + result, tl.sum(norm * weight, axis=0))
    part_sum = tl.sum(total * weight[:, None], axis=0)
    tl.store(part_sums + result * CHANNELS + channel, part_sum, mask=channel_ok)


@triton.jit(do_not_specialize=['parts'])
def _combine_parts(
    part_sums, part_maxima, part_norms, means, maxima, norms, parts,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One head's mean, largest score and softmax denominator for one image."""
    program = tl.program_id(0).to(tl.int64)
    head, image = program % HEADS, program // HEADS
    channel = tl.arange(0, BLOCK_C)
    channel_ok = channel < CHANNELS
    part = tl.arange(0, BLOCK_P)
    at = (image * parts + part) * HEADS + head
    part_largest = tl.load(part_maxima + at, mask=part < parts, other=_LOWEST)
    part_norm = tl.load(part_norms + at, mask=part < parts, other=0.0)
    largest = tl.max(part_largest, axis=0)
    norm = tl.sum(part_norm * tl.exp(part_largest - largest), axis=0)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for i in range(parts):
        source = (image * parts + i) * HEADS + head
        weight = tl.exp(tl.load(part_maxima + source) - largest)
        total += weight * tl.load(
            part_sums + source * CHANNELS + channel, mask=channel_ok, other=0.0
        )
    tl.store(means + program * CHANNELS + channel, total / norm, mask=channel_ok)
    tl.store(maxima + program, largest)
    tl.store(norms + program, norm)


@triton.jit(do_not_specialize=['count', 'blocks'])
def _differentiate(
    grad, x, vectors, means, maxima, norms, grad_x, vector_shares, count, blocks,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of positions, and its contribution to that of each vector.

    With weight a of a position and t = <grad, x>, that of its score is a (t - <grad, mean>).
    """
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    position = (program % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    channel_ok = channel < CHANNELS
    mask = (position < count)[:, None] & channel_ok[None, :]
    at = image * (count * CHANNELS) + (position[:, None] * CHANNELS + channel[None, :])
    row = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for head in range(HEADS):
        entry = (image * HEADS + head) * CHANNELS + channel
        direction = tl.load(grad + entry, mask=channel_ok, other=0.0)
        mean = tl.load(means + entry, mask=channel_ok, other=0.0)
        vector = tl.load(vectors + head * CHANNELS + channel, mask=channel_ok, other=0.0)
        largest = tl.load(maxima + image * HEADS + head)
        norm = tl.load(norms + image * HEADS + head)
        score = tl.sum(row * vector[None, :], axis=1)
        weight = tl.where(position < count, tl.exp(score - largest) / norm, 0.0)
        product = tl.sum(row * direction[None, :], axis=1)
        from_score = weight * (product - tl.sum(direction * mean, axis=0))
        total += weight[:, None] * direction[None, :] + from_score[:, None] * vector[None, :]
        share = tl.sum(from_score[:, None] * row, axis=0)
        result = (program * HEADS + head) * CHANNELS + channel
        tl.store(vector_shares + result, share, mask=channel_ok)
    tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=mask)


@torch.library.custom_op(
    'mmvitattn::saliency_means',
    mutates_args=(),
    schema='(Tensor x, Tensor vectors) -> (Tensor, Tensor, Tensor)',
)
def _saliency_means(x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, vectors = x.contiguous(), vectors.contiguous()
    (batch, count, channels), heads = x.shape, len(vectors)
    shape = dict(HEADS=heads, CHANNELS=channels, BLOCK_C=triton.next_power_of_2(channels))

    def launch(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
        block_n = max(1, blocks.elements // shape['BLOCK_C'])
        num_blocks = -(-count // block_n)
        steps = -(-num_blocks // min(MAX_PARTS, num_blocks, -(-NUM_PROGRAMS // (batch * heads))))
        parts = -(-num_blocks // steps)
        part_sums, part_maxima, part_norms = (
            vectors.new_empty(batch, parts, heads, n) for n in (channels, 1, 1)
        )
        means, maxima, norms = (t.new_empty(t.shape) for t in _empty_results(x, vectors))
        _sum_part[(batch * parts * heads,)](
            *(x, vectors, part_sums, part_maxima, part_norms, count, parts, steps),
            **shape,
            BLOCK_N=block_n,
            num_warps=blocks.warps,
        )
        _combine_parts[(batch * heads,)](
            *(part_sums, part_maxima, part_norms, means, maxima, norms, parts),
            **shape,
            BLOCK_P=triton.next_power_of_2(parts),
        )
        return means, maxima, norms

    return launch_with_blocks('saliency_means', launch, BLOCKS, x, shape)


@_saliency_means.register_fake
def _empty_results(x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (len(x), len(vectors))
    return (
        vectors.new_empty(*shape, x.shape[2]),
        vectors.new_empty(shape),
        vectors.new_empty(shape),
    )


@torch.library.custom_op(
    'mmvitattn::saliency_means_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor x, Tensor vectors, Tensor means, Tensor maxima, Tensor norms)'
    ' -> (Tensor, Tensor)',
)
def _saliency_means_backward(
    grad: Tensor, x: Tensor, vectors: Tensor, means: Tensor, maxima: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    grad, x, vectors = grad.contiguous(), x.contiguous(), vectors.contiguous()
    (batch, count, channels), heads = x.shape, len(vectors)
    shape = dict(HEADS=heads, CHANNELS=channels, BLOCK_C=triton.next_power_of_2(channels))

    def launch(blocks: Blocks) -> tuple[Tensor, Tensor]:
        block_n = max(1, blocks.elements // shape['BLOCK_C'])
        num_blocks = -(-count // block_n)
        grad_x = torch.empty_like(x)
        vector_shares = vectors.new_empty(batch * num_blocks, heads, channels)
        _differentiate[(batch * num_blocks,)](
            *(grad, x, vectors, means, maxima, norms, grad_x, vector_shares, count, num_blocks),
            **shape,
            BLOCK_N=block_n,
            num_warps=blocks.warps,
        )
        return grad_x, vector_shares.sum(dim=0)

    return launch_with_blocks('saliency_means_backward', launch, BLOCKS, x, shape)


@_saliency_means_backward.register_fake
def _(grad: Tensor, x: Tensor, vectors: Tensor, *statistics: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), vectors.new_empty(vectors.shape)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.mmvitattn.saliency_means_backward(grad, *ctx.saved_tensors)


_saliency_means.register_autograd(_backward, setup_context=save_inputs)

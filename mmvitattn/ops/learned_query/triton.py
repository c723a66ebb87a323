"""Learned-query attention on the GPU: one kernel forward, two backward.

Forward, each program reads the scores and values of its windows from the cache and writes only its
output. Backward, a first kernel computes statistics of the windows (three maps of the scores'
size), a second gathers the gradient of each position from the windows that read it: without
atomics, so that results are the same in every run. Gradients of bias and scale are summed over
tiles afterwards.

Shapes as in :mod:`mmvitattn.ops.learned_query`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from ..triton_blocks import Blocks, launch_with_blocks
from ..triton_support import MAX_OFFSET, only_interpreted, save_inputs, unsupported
from . import triton_kernels as kernels

if TYPE_CHECKING:
    from . import LearnedQueryInputs

BLOCKS = Blocks(2048)  # unless searched for; elements of the values
MAX_DIM = 1024
MAX_QUERIES = 32
_SCHEMA = '(Tensor scores, Tensor values, Tensor bias, Tensor scale, int kernel_size, int stride)'


def reason_not_to_run(inputs: 'LearnedQueryInputs') -> str | None:
    """Why the kernels cannot take this input, or ``None``."""
    scores, values, bias, scale, *_ = inputs
    reason = unsupported(values, scores, bias, scale)
    if reason is not None:
        return reason
    if values.shape[4] > MAX_DIM or scores.shape[3] > MAX_QUERIES:
        return f'more than {MAX_DIM} channels a head or {MAX_QUERIES} queries'
    if max(math.prod(values.shape[1:]), math.prod(scores.shape[1:])) > MAX_OFFSET:
        return 'one image has more than 2^31 elements'
    return None


def reason_not_to_prefer(inputs: 'LearnedQueryInputs') -> str | None:
    """Why another implementation is faster, or ``None``."""
    return only_interpreted(inputs.scores)


def run(inputs: 'LearnedQueryInputs') -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    return torch.ops.mmvitattn.learned_query(*inputs)


def _settings(scores: Tensor, values: Tensor, kernel_size: int, stride: int) -> dict[str, int]:
    """The kernels' compile-time arguments, but for the tiles."""
    queries, heads, dim = *scores.shape[3:], values.shape[4]
    block_d, block_q = triton.next_power_of_2(dim), triton.next_power_of_2(queries)
    # Heads that fill 64 channels (whole cache lines), if possible without a partial block.
    block_h = min(triton.next_power_of_2(heads), max(1, 64 // block_d))
    while block_h > 1 and heads % block_h and block_h * block_d > 32:
        block_h //= 2
    return {
        **dict(HEADS=heads, QUERIES=queries, DIM=dim, KERNEL=kernel_size, STRIDE=stride),
        **dict(BLOCK_H=block_h, BLOCK_Q=block_q, BLOCK_D=block_d),
    }


def _tiles(blocks: Blocks, settings: dict[str, int]) -> dict[str, int]:
    """Sides of the tile of positions of one program."""
    block_h, block_q, block_d = (settings[f'BLOCK_{axis}'] for axis in 'HQD')
    positions = max(1, blocks.elements // (block_h * max(block_d, 2 * block_q)))
    tile_y = 1 << ((positions.bit_length() - 1) // 2)
    return dict(TILE_Y=tile_y, TILE_X=positions // tile_y)


def _output_size(scores: Tensor, stride: int) -> tuple[int, int]:
    return -(-scores.shape[1] // stride), -(-scores.shape[2] // stride)


def _grid(
    batch: int, size: Sequence[int], tiles: dict[str, int], settings: dict[str, int]
) -> tuple[int, int]:
    """Number of tiles in all images, and of programs for each tile (blocks of heads)."""
    count = -(-size[0] // tiles['TILE_Y']) * -(-size[1] // tiles['TILE_X'])
    return batch * count, -(-settings['HEADS'] // settings['BLOCK_H'])


@torch.library.custom_op('mmvitattn::learned_query', mutates_args=(), schema=f'{_SCHEMA} -> Tensor')
def _attend(
    scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor, kernel_size: int, stride: int
) -> Tensor:
    scores, values, bias, scale = (t.contiguous() for t in (scores, values, bias, scale))
    settings = _settings(scores, values, kernel_size, stride)
    size = _output_size(scores, stride)

    def launch(blocks: Blocks) -> Tensor:
        output = values.new_empty(len(values), *size, *values.shape[3:])
        tiles = _tiles(blocks, settings)
        num_tiles, head_blocks = _grid(len(values), size, tiles, settings)
        kernels.attend[(num_tiles * head_blocks,)](
            *(scores, values, bias, scale, output, *scores.shape[1:3], *size),
            **settings,
            **tiles,
            num_warps=blocks.warps,
        )
        return output

    return launch_with_blocks('learned_query', launch, BLOCKS, values, settings)


@_attend.register_fake
def _(scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor, k: int, stride: int) -> Tensor:
    return values.new_empty(len(values), *_output_size(scores, stride), *values.shape[3:])


@torch.library.custom_op(
    'mmvitattn::learned_query_backward',
    mutates_args=(),
    schema=f'(Tensor grad, {_SCHEMA[1:-1]}, bool tables) -> (Tensor, Tensor, Tensor, Tensor)',
)
def _differentiate(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, kernel_size, stride, tables = arguments
    inputs = [t.contiguous() for t in tensors]
    grad, scores, values, bias, _ = inputs
    settings = _settings(scores, values, kernel_size, stride)
    size = grad.shape[1:3]

    def launch(blocks: Blocks) -> tuple[Tensor, ...]:
        tiles = _tiles(blocks, settings)
        num_tiles, head_blocks = _grid(len(values), size, tiles, settings)
        statistics = scores.new_empty(3, *grad.shape[:3], *scores.shape[3:])
        grads = torch.empty_like(scores), torch.empty_like(values)
        shares = scores.new_empty(2, num_tiles if tables else 0, *bias.shape)
        sizes = (*scores.shape[1:3], *size)
        options = dict(**settings, **tiles, num_warps=blocks.warps)
        kernels.measure_windows[(num_tiles * head_blocks,)](*inputs, *statistics, *sizes, **options)
        kernels.differentiate[(num_tiles * head_blocks, stride**2)](
            *(*inputs, *statistics, *grads, *shares, *sizes), **options, TABLES=tables
        )
        # Not views of one tensor: outputs of an operator may not share memory.
        return *grads, shares[0].sum(dim=0), shares[1].sum(dim=0)

    return launch_with_blocks('learned_query_backward', launch, BLOCKS, values, settings)


@_differentiate.register_fake
def _(grad: Tensor, scores: Tensor, values: Tensor, bias: Tensor, *others: Any) -> tuple:
    return tuple(t.new_empty(t.shape) for t in (scores, values, bias, bias))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tables = any(ctx.needs_input_grad[2:4])
    inputs = (*ctx.saved_tensors, *ctx.settings)
    grads = torch.ops.mmvitattn.learned_query_backward(grad, *inputs, tables)
    return *grads, None, None


_attend.register_autograd(_backward, setup_context=save_inputs)

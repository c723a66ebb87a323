"""Triton kernels of learned-query attention; :mod:`.triton` launches them.

A program handles P = ``TILE_Y`` x ``TILE_X`` positions and ``BLOCK_H`` heads of one image. Scores,
weights and their products with the values exist only in registers: blocks (P, ``BLOCK_Q``,
``BLOCK_H``) of scores, (P, ``BLOCK_H``, ``BLOCK_D``) of values.

All tensors are contiguous: scores (B, H, W, q, h), values (B, H, W, h, d), position bias and
attention scale (k*k, q, h), statistics of the windows as the scores but on the grid of the output.
Offsets inside one image are 32-bit, those of images 64-bit.
"""

import triton
import triton.language as tl

from ..triton_support import LOWEST

_LOWEST = tl.constexpr(LOWEST)
# Not compiled separately for sizes that 16 divides: alignment follows from the channels.
_SIZES = ['height', 'width', 'output_height', 'output_width']


@triton.jit
def _tile(
    height, width, HEADS: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """This program's tile, counted over all images; its image, positions (P,), heads (BLOCK_H,)."""
    head_blocks: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    program = tl.program_id(0)
    tile = program // head_blocks
    columns = tl.cdiv(width, TILE_X)
    tiles = columns * tl.cdiv(height, TILE_Y)
    position = tl.arange(0, TILE_Y * TILE_X)
    y = (tile % tiles // columns) * TILE_Y + position // TILE_X
    x = (tile % tiles % columns) * TILE_X + position % TILE_X
    head = (program % head_blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    return tile.to(tl.int64), (tile // tiles).to(tl.int64), y, x, head


@triton.jit
def _cells(head, HEADS: tl.constexpr, QUERIES: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Offsets (1, BLOCK_Q, BLOCK_H) of the scores of one position, and which of them exist."""
    query = tl.arange(0, BLOCK_Q)[:, None]
    cell = query * HEADS + head[None, :]
    return cell[None], ((query < QUERIES) & (head < HEADS)[None, :])[None]


@triton.jit
def _channels(head, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets (1, BLOCK_H, BLOCK_D) of the values of one position, and which of them exist."""
    dim = tl.arange(0, BLOCK_D)[None, :]
    channel = head[:, None] * DIM + dim
    return channel[None], ((dim < DIM) & (head < HEADS)[:, None])[None]


@triton.jit
def _input(
    y, x, dy, dx, height, width, exists, KERNEL: tl.constexpr, STRIDE: tl.constexpr
):  # fmt: skip
    """Positions (P, 1, 1) that windows read at one offset, and which lie inside the image."""
    input_y = y * STRIDE + dy - KERNEL // 2
    input_x = x * STRIDE + dx - KERNEL // 2
    inside = exists & (input_y >= 0) & (input_y < height) & (input_x >= 0) & (input_x < width)
    return (input_y * width + input_x)[:, None, None], inside[:, None, None]


@triton.jit
def _largest_scores(
    scores, bias, y, x, height, width, exists, cell, cell_ok, CELLS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """The largest score of each window, query and head."""
    largest = tl.full((y.shape[0], cell.shape[1], cell.shape[2]), _LOWEST, tl.float32)
    for dy in range(KERNEL):
        for dx in range(KERNEL):
            at, inside = _input(y, x, dy, dx, height, width, exists, KERNEL, STRIDE)
            mask, entry = inside & cell_ok, (dy * KERNEL + dx) * CELLS + cell
            score = tl.load(scores + (at * CELLS + cell), mask=mask, other=float('-inf'))
            largest = tl.maximum(largest, score + tl.load(bias + entry, mask=cell_ok, other=0.0))
    return largest


@triton.jit
def _exponentials(scores, bias, at, mask, entry, cell, cell_ok, largest, CELLS: tl.constexpr):
    score = tl.load(scores + (at * CELLS + cell), mask=mask, other=float('-inf'))
    # The difference first: near the maximum it is exact, however large the scores are.
    return tl.exp((score - largest) + tl.load(bias + entry, mask=cell_ok, other=0.0))


@triton.jit(do_not_specialize=_SIZES)
def attend(
    scores, values, bias, scale, output, height, width, output_height, output_width,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Output of a tile of windows: their largest scores, denominators, then weighted sums."""
    CELLS: tl.constexpr = QUERIES * HEADS
    CHANNELS: tl.constexpr = HEADS * DIM
    _, image, y, x, head = _tile(output_height, output_width, HEADS, TILE_Y, TILE_X, BLOCK_H)
    exists = (y < output_height) & (x < output_width)
    cell, cell_ok = _cells(head, HEADS, QUERIES, BLOCK_Q)
    channel, channel_ok = _channels(head, HEADS, DIM, BLOCK_D)
    scores += image * (height * width * CELLS)
    values += image * (height * width * CHANNELS)
    output += image * (output_height * output_width * CHANNELS)

    largest = _largest_scores(
        scores, bias, y, x, height, width, exists, cell, cell_ok, CELLS, KERNEL, STRIDE
    )
    norm = tl.zeros(largest.shape, tl.float32)
    for dy in range(KERNEL):
        for dx in range(KERNEL):
            at, inside = _input(y, x, dy, dx, height, width, exists, KERNEL, STRIDE)
            mask, entry = inside & cell_ok, (dy * KERNEL + dx) * CELLS + cell
            norm += _exponentials(scores, bias, at, mask, entry, cell, cell_ok, largest, CELLS)
    factor = 1.0 / tl.where(norm > 0, norm, 1.0)
    total = tl.zeros((y.shape[0], BLOCK_H, BLOCK_D), tl.float32)
    for dy in range(KERNEL):
        for dx in range(KERNEL):
            at, inside = _input(y, x, dy, dx, height, width, exists, KERNEL, STRIDE)
            mask, entry = inside & cell_ok, (dy * KERNEL + dx) * CELLS + cell
            weight = factor * _exponentials(
                scores, bias, at, mask, entry, cell, cell_ok, largest, CELLS
            )
            weight *= tl.load(scale + entry, mask=cell_ok, other=0.0)
            value = tl.load(values + (at * CHANNELS + channel), mask=inside & channel_ok, other=0.0)
            total += tl.sum(weight, axis=1)[:, :, None] * value.to(tl.float32)
    result = (y * output_width + x)[:, None, None] * CHANNELS + channel
    result_mask = exists[:, None, None] & channel_ok
    tl.store(output + result, total.to(output.dtype.element_ty), mask=result_mask)


@triton.jit(do_not_specialize=_SIZES)
def measure_windows(
    grad, scores, values, bias, scale, largest_ptr, factor_ptr, expected_ptr,
    height, width, output_height, output_width,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Statistics of each window for the gradients: largest score, factor 1 / norm, expected t.

    ``t_j = scale_j <grad, values_j>`` is the gradient of the softmax weight of offset j.
    """
    CELLS: tl.constexpr = QUERIES * HEADS
    CHANNELS: tl.constexpr = HEADS * DIM
    _, image, y, x, head = _tile(output_height, output_width, HEADS, TILE_Y, TILE_X, BLOCK_H)
    exists = (y < output_height) & (x < output_width)
    cell, cell_ok = _cells(head, HEADS, QUERIES, BLOCK_Q)
    channel, channel_ok = _channels(head, HEADS, DIM, BLOCK_D)
    scores += image * (height * width * CELLS)
    values += image * (height * width * CHANNELS)
    grad += image * (output_height * output_width * CHANNELS)

    largest = _largest_scores(
        scores, bias, y, x, height, width, exists, cell, cell_ok, CELLS, KERNEL, STRIDE
    )
    window = (y * output_width + x)[:, None, None]
    direction = tl.load(
        grad + (window * CHANNELS + channel), mask=exists[:, None, None] & channel_ok, other=0.0
    ).to(tl.float32)
    norm = tl.zeros(largest.shape, tl.float32)
    expected = tl.zeros(largest.shape, tl.float32)
    for dy in range(KERNEL):
        for dx in range(KERNEL):
            at, inside = _input(y, x, dy, dx, height, width, exists, KERNEL, STRIDE)
            mask, entry = inside & cell_ok, (dy * KERNEL + dx) * CELLS + cell
            e = _exponentials(scores, bias, at, mask, entry, cell, cell_ok, largest, CELLS)
            value = tl.load(values + (at * CHANNELS + channel), mask=inside & channel_ok, other=0.0)
            product = tl.sum(direction * value.to(tl.float32), axis=2)[:, None, :]
            norm += e
            expected += e * product * tl.load(scale + entry, mask=cell_ok, other=0.0)
    factor = 1.0 / tl.where(norm > 0, norm, 1.0)
    result = image * (output_height * output_width * CELLS) + (window * CELLS + cell)
    result_mask = exists[:, None, None] & cell_ok
    tl.store(largest_ptr + result, largest, mask=result_mask)
    tl.store(factor_ptr + result, factor, mask=result_mask)
    tl.store(expected_ptr + result, expected * factor, mask=result_mask)


@triton.jit(do_not_specialize=_SIZES)
def differentiate(
    grad, scores, values, bias, scale, largest_ptr, factor_ptr, expected_ptr,
    grad_scores, grad_values, grad_bias, grad_scale,
    height, width, output_height, output_width,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, TABLES: tl.constexpr,
):  # fmt: skip
    """Gradients for a tile of the input, gathered from all windows that read it.

    The positions of a program have one residue modulo the stride, given by the second axis of the
    grid, and are read at the same window offsets. With ``TABLES``, the tile's terms of the
    gradients of bias and scale are written as well, (tiles, k*k, q, h); each offset belongs to one
    residue, so all residues of a tile write to the same row.
    """
    CELLS: tl.constexpr = QUERIES * HEADS
    CHANNELS: tl.constexpr = HEADS * DIM
    tile, image, coarse_y, coarse_x, head = _tile(
        output_height, output_width, HEADS, TILE_Y, TILE_X, BLOCK_H
    )
    residue_y, residue_x = tl.program_id(1) // STRIDE, tl.program_id(1) % STRIDE
    y, x = coarse_y * STRIDE + residue_y, coarse_x * STRIDE + residue_x
    exists = (y < height) & (x < width)
    cell, cell_ok = _cells(head, HEADS, QUERIES, BLOCK_Q)
    channel, channel_ok = _channels(head, HEADS, DIM, BLOCK_D)
    pixels, windows = image * (height * width), image * (output_height * output_width)
    scores += pixels * CELLS
    values += pixels * CHANNELS
    grad_scores += pixels * CELLS
    grad_values += pixels * CHANNELS
    grad += windows * CHANNELS
    largest_ptr += windows * CELLS
    factor_ptr += windows * CELLS
    expected_ptr += windows * CELLS
    grad_bias += tile * (KERNEL * KERNEL * CELLS)
    grad_scale += tile * (KERNEL * KERNEL * CELLS)

    at = (y * width + x)[:, None, None]
    cell_at, cell_mask = at * CELLS + cell, exists[:, None, None] & cell_ok
    channel_at, channel_mask = at * CHANNELS + channel, exists[:, None, None] & channel_ok
    score = tl.load(scores + cell_at, mask=cell_mask, other=float('-inf'))
    value = tl.load(values + channel_at, mask=channel_mask, other=0.0).to(tl.float32)
    score_total = tl.zeros(score.shape, tl.float32)
    value_total = tl.zeros(value.shape, tl.float32)
    for dy in range((residue_y + KERNEL // 2) % STRIDE, KERNEL, STRIDE):
        for dx in range((residue_x + KERNEL // 2) % STRIDE, KERNEL, STRIDE):
            # Multiples of the stride: the division is exact.
            window_y = (y + KERNEL // 2 - dy) // STRIDE
            window_x = (x + KERNEL // 2 - dx) // STRIDE
            used = exists & (window_y >= 0) & (window_y < output_height)
            used = (used & (window_x >= 0) & (window_x < output_width))[:, None, None]
            window = (window_y * output_width + window_x)[:, None, None]
            mask, entry = used & cell_ok, (dy * KERNEL + dx) * CELLS + cell
            statistic = window * CELLS + cell
            # Infinity makes the weight of what does not exist zero.
            largest = tl.load(largest_ptr + statistic, mask=mask, other=float('inf'))
            factor = tl.load(factor_ptr + statistic, mask=mask, other=0.0)
            expected = tl.load(expected_ptr + statistic, mask=mask, other=0.0)
            direction = tl.load(
                grad + (window * CHANNELS + channel), mask=used & channel_ok, other=0.0
            ).to(tl.float32)
            exponent = (score - largest) + tl.load(bias + entry, mask=cell_ok, other=0.0)
            weight = tl.exp(exponent) * factor
            scaled = weight * tl.load(scale + entry, mask=cell_ok, other=0.0)
            product = tl.sum(direction * value, axis=2)[:, None, :]
            from_score = scaled * product - weight * expected
            score_total += from_score
            value_total += tl.sum(scaled, axis=1)[:, :, None] * direction
            if TABLES:
                tl.store(grad_bias + entry, tl.sum(from_score, axis=0)[None], mask=cell_ok)
                tl.store(grad_scale + entry, tl.sum(weight * product, axis=0)[None], mask=cell_ok)
    tl.store(grad_scores + cell_at, score_total, mask=cell_mask)
    tl.store(
        grad_values + channel_at, value_total.to(grad_values.dtype.element_ty), mask=channel_mask
    )

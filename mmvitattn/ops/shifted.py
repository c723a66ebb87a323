"""Shifted patch embeddings and the attention over them (SAG).

Shapes: B batch, H W image or grid, C channels of the input, T variants (shifts), K kernel side, E
channels of the embedding, N patches, h heads, d channels of a head. A prime marks the grid of the
output: H' = (H + 2 * padding - K) // stride + 1.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, reference
from .precision import precise_dtype, without_autocast
from .reference import Affine
from .torch_api import is_exporting

BORDERS = ('extend', 'roll')
Shifts = Sequence[tuple[int, int]]


def shifted_patch_embedding(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Shifts,
    stride: int,
    padding: int = 0,
    border: str = 'extend',
) -> Tensor:
    """Embeds T shifted copies of an image, each by a convolution of its own (SAG, section 3.1).

    All T convolutions are one batched matrix product over the patches that each of them reads.

    Args:
        image: (B, H, W, C).
        weight: one kernel for each shift, (T, E, C, K, K).
        bias: (T, E) or None.
        shifts: T pairs of pixels (down, right); negative ones (up, left) with 'roll' alone.
        stride: stride of the convolutions, in pixels.
        padding: zeros on each side of the shifted image, in pixels.
        border: what a shift does at the borders. 'extend': the image grows on the top and the left
            by rows and columns taken circularly from the bottom and the right; the output keeps
            its size. 'roll': a circular shift.

    Returns:
        Embeddings, (T, B, H', W', E).

    Raises:
        ValueError: if the shapes do not fit each other, or for an unknown border or a shift that
            it cannot do.
    """
    _check_embedding(image, weight, bias, shifts, stride, padding, border)
    args = (image, weight, bias, shifts, stride, padding, border)
    return dispatch.choose('shifted_patch_embedding', *args)(*args)


def _check_embedding(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Shifts,
    stride: int,
    padding: int,
    border: str,
) -> None:
    name = 'shifted_patch_embedding'
    check_shifts(name, shifts, border)
    kernel_size = weight.shape[-1]
    fits = image.dim() == 4 and weight.dim() == 5
    if not fits or weight.shape[2:] != (image.shape[3], kernel_size, kernel_size):
        raise ValueError(
            f'{name}: image must be (B, H, W, C) and weight (T, E, C, K, K), got '
            f'{tuple(image.shape)} and {tuple(weight.shape)}'
        )
    if len(weight) != len(shifts) or bias is not None and bias.shape != weight.shape[:2]:
        raise ValueError(
            f'{name}: {len(shifts)} shifts need weight (T, ...) and bias (T, E) with T = '
            f'{len(shifts)}, got {tuple(weight.shape)} and '
            f'{bias if bias is None else tuple(bias.shape)}'
        )
    if stride < 1 or padding < 0 or min(image.shape[1:3]) + 2 * padding < kernel_size:
        raise ValueError(
            f'{name}: needs stride >= 1, padding >= 0 and an image, with its padding, not smaller '
            f'than the kernel; got stride={stride}, padding={padding}, kernel '
            f'{kernel_size} and image {image.shape[1]} x {image.shape[2]}'
        )


def check_shifts(name: str, shifts: Shifts, border: str) -> None:
    """Raises a ValueError for shifts that do not exist in this border form.

    Args:
        name: what takes the shifts, for the message.
        shifts: pairs of pixels (down, right).
        border: 'extend' or 'roll'.
    """
    if border not in BORDERS:
        raise ValueError(f'{name}: border is one of {BORDERS}, got {border!r}')
    if not shifts or any(len(shift) != 2 for shift in shifts):
        raise ValueError(f'{name}: shifts must be pairs (down, right), got {shifts}')
    if border == 'extend' and any(pixels < 0 for shift in shifts for pixels in shift):
        raise ValueError(
            f"{name}: border 'extend' shifts down and right alone, use 'roll' for {shifts}"
        )


def _batched_product(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Shifts,
    stride: int,
    padding: int,
    border: str,
) -> Tensor:
    kernel_size = weight.shape[-1]
    windows = [
        variant.unfold(1, kernel_size, stride).unfold(2, kernel_size, stride)
        for variant in _shifted_images(image, shifts, padding, border)
    ]  # views (B, H', W', C, K, K)
    # The one copy, in runs of a kernel's row: its K pixels of C channels stand together.
    patches = torch.stack([window.permute(0, 1, 2, 4, 5, 3) for window in windows])
    grid = patches.shape[1:4]
    patches = patches.flatten(4).flatten(1, 3)  # (T, N, K * K * C)
    kernels = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # (T, K * K * C, E)
    if bias is None:
        embeddings = torch.bmm(patches, kernels)
    else:
        embeddings = torch.baddbmm(bias[:, None], patches, kernels)
    return embeddings.unflatten(1, grid)


def _cannot_batch(image: Tensor, *settings: object) -> str | None:
    return 'a recording would keep its windows for one size' if is_exporting() else None


def _shifted_images(image: Tensor, shifts: Shifts, padding: int, border: str) -> list[Tensor]:
    """The T shifted images with their zero padding, (B, H + 2P, W + 2P, C), views where P = 0.

    Each is a window of one canvas: the image continued circularly as far as the shifts reach.
    """
    height, width = image.shape[1:3]
    # No zip(strict=True): torch.compile of torch 2.1 cannot trace it.
    down, right = [y for y, _ in shifts], [x for _, x in shifts]
    canvas = _continue_circularly(image.contiguous(), 1, max(0, *down), max(0, -min(down)))
    canvas = _continue_circularly(canvas, 2, max(0, *right), max(0, -min(right)))
    variants = []
    for y, x in shifts:
        top, left = max(0, *down) - y, max(0, *right) - x
        # The grown image, as far as the output that keeps its size can see it.
        rows = min(height + y, height + padding) if border == 'extend' else height
        columns = min(width + x, width + padding) if border == 'extend' else width
        variant = canvas[:, top : top + rows, left : left + columns]
        if padding:
            bottom, right_side = height + padding - rows, width + padding - columns
            variant = F.pad(variant, (0, 0, padding, right_side, padding, bottom))
        variants.append(variant)
    return variants


def _continue_circularly(image: Tensor, axis: int, before: int, after: int) -> Tensor:
    if not before and not after:
        return image
    size = image.shape[axis]  # which a shift may exceed
    first = image.narrow(axis, size - before % size, before % size)
    last = image.narrow(axis, 0, after % size)
    copies = before // size + 1 + after // size
    return torch.cat([first, *[image] * copies, last], dim=axis)


def local_shift_attention(
    x: Tensor, query: Affine, key: Affine, value: Affine, num_heads: int
) -> Tensor:
    """Attends from each patch to its own shifted variants (SAG, equations 1 to 4).

    Per head, ``o = sum_t softmax_t(q K_t / sqrt(d)) V_t`` with the query of the unshifted variant.
    Neither keys nor values are built: ``q K_t = (q Wk) x_t`` (the keys' bias is the same for all t,
    the softmax does not see it), and the softmax sums to one, so that the values' projection may
    follow the mean, ``o = Wv (sum_t a_t x_t) + bv``. Queries and softmax are computed in float32
    (or the input's precision if higher), also under autocast.

    Args:
        x: tokens of all variants, the unshifted one first, (T, B, H, W, C).
        query: weight (C, C) and bias (C,) or None of the queries' projection.
        key: weight (h * d, C), or (d, C) for keys that all heads share, and bias or None.
        value: the same of the values' projection, of the keys' form.
        num_heads: heads h; C = h * d.

    Returns:
        Heads side by side, before an output projection, (B, H, W, C).

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_attention(x, query, key, value, num_heads)
    args = (x, query, key, value, num_heads)
    return dispatch.choose('local_shift_attention', *args)(*args)


def shift_weights(x: Tensor, query: Affine, key: Affine, num_heads: int) -> Tensor:
    """The weights with which :func:`local_shift_attention` averages the variants' values.

    Args:
        x: tokens of all variants, the unshifted one first, (T, B, H, W, C).
        query: weight (C, C) and bias (C,) or None of the queries' projection.
        key: weight (h * d, C), or (d, C) for keys that all heads share, and bias or None.
        num_heads: heads h; C = h * d.

    Returns:
        Weights, which sum to one over the variants, (T, B, H, W, h), in at least float32.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_attention(x, query, key, key, num_heads)
    with without_autocast(x):
        tokens = x.flatten(1, 3)
        weights, _ = _variant_weights(tokens, _folded_queries(tokens, query, key, num_heads))
    return weights.movedim(-1, 0).unflatten(1, x.shape[1:4])


def _check_attention(x: Tensor, query: Affine, key: Affine, value: Affine, num_heads: int) -> None:
    channels = x.shape[-1]
    if x.dim() != 5 or num_heads < 1 or channels % num_heads:
        raise ValueError(
            f'local_shift_attention: x must be (T, B, H, W, C) with C a multiple of {num_heads} '
            f'heads, got {tuple(x.shape)}'
        )
    kinds = ((channels, channels), (channels // num_heads, channels))
    shapes = [tuple(weight.shape) for weight, _ in (query, key, value)]
    if shapes[0] != kinds[0] or shapes[1] not in kinds or shapes[2] != shapes[1]:
        raise ValueError(
            f'local_shift_attention: the weights of query, key and value must be {kinds[0]}, and '
            f'for shared keys and values the last two {kinds[1]}; got {shapes}'
        )


def _folded_queries(tokens: Tensor, query: Affine, key: Affine, num_heads: int) -> Tensor:
    """Queries of each of N patches with the keys' projection folded in, (h, N, C)."""
    channels = tokens.shape[-1]
    dim = channels // num_heads
    precise = precise_dtype(tokens)
    weight, bias = [t if t is None else t.to(precise) for t in query]
    queries = F.linear(tokens[0].to(precise), weight, bias).unflatten(-1, (num_heads, dim))
    key_weight = key[0].to(precise).view(-1, dim, channels)  # (h or 1, d, C)
    return torch.matmul(queries.transpose(0, 1) * dim**-0.5, key_weight)


def _variant_weights(tokens: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, h, T) of the variants of each patch, and the variants, (N, T, C)."""
    variants = tokens.to(queries.dtype).transpose(0, 1)
    return torch.bmm(queries.transpose(0, 1), variants.transpose(1, 2)).softmax(dim=-1), variants


def _pool_variants(tokens: Tensor, queries: Tensor) -> Tensor:
    """Means of the variants (T, N, C) for queries (h, N, C), (h, N, C)."""
    return torch.bmm(*_variant_weights(tokens, queries)).transpose(0, 1)


def folded(
    x: Tensor,
    query: Affine,
    key: Affine,
    value: Affine,
    num_heads: int,
    pool_variants: Callable[[Tensor, Tensor], Tensor] = _pool_variants,
) -> Tensor:
    """See :func:`local_shift_attention`."""
    grid, channels = x.shape[1:4], x.shape[-1]
    tokens, dim = x.flatten(1, 3), channels // num_heads
    with without_autocast(x):
        means = pool_variants(tokens, _folded_queries(tokens, query, key, num_heads))
    values = value[0].view(-1, dim, channels)
    output = torch.matmul(means.to(x.dtype), values.transpose(1, 2)).transpose(0, 1)  # (N, h, d)
    if value[1] is not None:
        output = output + value[1].view(-1, dim).to(output.dtype)
    return output.flatten(1).unflatten(0, grid)


dispatch.register('shifted_patch_embedding', 'batched_product', _batched_product, _cannot_batch)
dispatch.register('shifted_patch_embedding', 'reference', reference.shifted_patch_embedding)
dispatch.register('local_shift_attention', 'folded', folded)
dispatch.register('local_shift_attention', 'reference', reference.local_shift_attention)

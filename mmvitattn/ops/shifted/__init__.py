"""Shifted patch embeddings and the attention over them (SAG).

Shapes: B batch, H W image or grid, C channels of the input, T variants (shifts), K kernel side, E
channels of the embedding, N patches, h heads, d channels of a head. A prime marks the grid of the
output: H' = (H + 2 * padding - K) // stride + 1.
"""

from typing import NamedTuple

from torch import Tensor

from .. import dispatch, reference
from ..dispatch import Implementation, without_autocast
from ..reference import Affine
from ..triton_support import triton_implementation
from . import batched_product, folded
from .shifts import Shifts, check_shifts


class PatchEmbeddingInputs(NamedTuple):
    """Arguments of :func:`shifted_patch_embedding`."""

    image: Tensor  # (B, H, W, C)
    weight: Tensor  # (T, E, C, K, K)
    bias: Tensor | None  # (T, E)
    shifts: Shifts
    stride: int
    padding: int
    border: str


class LocalShiftInputs(NamedTuple):
    """Arguments of :func:`local_shift_attention`."""

    x: Tensor  # (T, B, H, W, C)
    query: Affine  # weight (C, C), and bias (C,) or None
    key: Affine  # weight (h * d, C) or (d, C), and its bias or None
    value: Affine  # like the key
    num_heads: int


def shifted_patch_embedding(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Shifts,
    stride: int,
    padding: int = 0,
    border: str = 'extend',
) -> Tensor:
    """Embeds T shifted copies of an image, each by its own convolution (SAG, section 3.1).

    All T convolutions are one batched matrix product over the patches that each of them reads.

    Args:
        image: (B, H, W, C).
        weight: one kernel for each shift, (T, E, C, K, K).
        bias: (T, E) or None.
        shifts: T pairs of pixels (down, right); negative ones (up, left) only with 'roll'.
        stride: stride of the convolutions, in pixels.
        padding: zeros on each side of the shifted image, in pixels.
        border: what a shift does at the borders. 'extend': the image grows on the top and the left
            by rows and columns taken circularly from the bottom and the right; the output keeps
            its size. 'roll': a circular shift.

    Returns:
        Embeddings, (T, B, H', W', E).

    Raises:
        ValueError: if the shapes do not match, or for an unknown border or a shift that
            it does not support.
    """
    inputs = PatchEmbeddingInputs(image, weight, bias, shifts, stride, padding, border)
    _check_embedding(inputs)
    return dispatch.run('shifted_patch_embedding', inputs)


def local_shift_attention(
    x: Tensor, query: Affine, key: Affine, value: Affine, num_heads: int
) -> Tensor:
    """Attends from each patch to its own shifted variants (SAG, equations 1 to 4).

    Per head, ``o = sum_t softmax_t(q K_t / sqrt(d)) V_t`` with the query of the unshifted variant.
    Neither keys nor values are computed: ``q K_t = (q Wk) x_t`` (the keys' bias adds the same to
    all t and cancels in the softmax), and the weights sum to one, so the values' projection can
    follow the mean, ``o = Wv (sum_t a_t x_t) + bv``. Queries and softmax are computed in float32
    (or the input's precision if higher), also under autocast.

    Args:
        x: tokens of all variants, the unshifted one first, (T, B, H, W, C).
        query: weight (C, C) and bias (C,) or None of the queries' projection.
        key: weight (h * d, C), or (d, C) for keys that all heads share, and bias or None.
        value: the same for the values' projection, with a weight of the keys' shape.
        num_heads: heads h; C = h * d.

    Returns:
        Heads side by side, before an output projection, (B, H, W, C).

    Raises:
        ValueError: if the shapes do not match.
    """
    inputs = LocalShiftInputs(x, query, key, value, num_heads)
    _check_attention(inputs)
    return dispatch.run('local_shift_attention', inputs)


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
        ValueError: if the shapes do not match.
    """
    _check_attention(LocalShiftInputs(x, query, key, key, num_heads))
    with without_autocast(x):
        tokens = x.flatten(1, 3)
        queries = folded.fold_queries(tokens, query, key, num_heads)
        weights, _ = folded.variant_weights(tokens, queries)
    return weights.movedim(-1, 0).unflatten(1, x.shape[1:4])


def _check_embedding(inputs: PatchEmbeddingInputs) -> None:
    image, weight, bias, shifts, stride, padding, border = inputs
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
            f'{name}: needs stride >= 1, padding >= 0 and a padded image not smaller than the '
            f'kernel; got stride={stride}, padding={padding}, kernel '
            f'{kernel_size} and image {image.shape[1]} x {image.shape[2]}'
        )


def _check_attention(inputs: LocalShiftInputs) -> None:
    x, query, key, value, num_heads = inputs
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


dispatch.register(
    'shifted_patch_embedding',
    PatchEmbeddingInputs,
    [
        Implementation('batched_product', batched_product.run, batched_product.reason_not_to_run),
        Implementation('reference', lambda inputs: reference.shifted_patch_embedding(*inputs)),
    ],
)
dispatch.register(
    'local_shift_attention',
    LocalShiftInputs,
    [
        triton_implementation(f'{__name__}.triton'),
        Implementation('folded', folded.run),
        Implementation('reference', lambda inputs: reference.local_shift_attention(*inputs)),
    ],
)

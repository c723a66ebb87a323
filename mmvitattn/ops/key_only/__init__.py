"""Key-only attention (LinGlo), linear in the number of positions.

Shapes: B batch, N positions, C channels, h heads, d = C/h channels of a head.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .. import dispatch, reference
from ..dispatch import Implementation, precise_dtype, without_autocast
from ..reference import Affine
from ..triton_support import triton_implementation
from . import folded, plain


class KeyOnlyInputs(NamedTuple):
    """Arguments of :func:`key_only_attention`."""

    x: Tensor  # (B, N, C)
    saliency: Tensor  # (h, d)
    key: Affine  # each: weight (C, C), and bias (C,) or None
    value: Affine
    gate: Affine
    out: Affine


def key_only_attention(
    x: Tensor, saliency: Tensor, key: Affine, value: Affine, gate: Affine, out: Affine
) -> Tensor:
    """Key-only attention: one saliency-weighted mean of the keys gates the value at each position.

    With ``K = x Wk``, ``V = x Wv``, per head ``a = softmax(K saliency / sqrt(d))`` over all
    positions and ``G = sum_i a_i K_i``, the output is ``((G * V) U1 + K) U2`` (LinGlo paper,
    equations 2 to 4). Time and memory are linear in N. The softmax and the weighted mean are
    computed in float32 (or the input's precision if higher), also under autocast.

    Args:
        x: input, (B, N, C).
        saliency: one saliency vector for each head, (h, d) with h * d = C.
        key: weight (C, C) and bias (C,) or None of the keys' projection ``Wk``.
        value: the same for the values' projection ``Wv``.
        gate: the same for ``U1``.
        out: the same for ``U2``.

    Returns:
        Output, (B, N, C), in the dtype of the projections.

    Raises:
        ValueError: if the shapes do not match.
    """
    if x.dim() != 3 or x.shape[-1] != saliency.numel():
        raise ValueError(
            f'key_only_attention: x must be (B, N, C) with C = heads * head_dim = '
            f'{saliency.shape[0]} * {saliency.shape[-1]}, but x is {tuple(x.shape)}'
        )
    return dispatch.run('key_only_attention', KeyOnlyInputs(x, saliency, key, value, gate, out))


def key_only_weights(x: Tensor, saliency: Tensor, key: Affine) -> Tensor:
    """The weights with which key-only attention averages the keys (LinGlo paper, equation 2).

    Args:
        x: input, (B, N, C).
        saliency: saliency vectors, (h, d).
        key: weight (C, C) and bias (C,) or None of the keys' projection.

    Returns:
        Weights over the positions, which sum to one, (B, h, N), in at least float32.
    """
    keys = F.linear(x, *key)
    with without_autocast(keys):
        keys = keys.to(precise_dtype(keys)).unflatten(-1, saliency.shape)
        return plain.saliency_weights(keys, saliency)


dispatch.register(
    'key_only_attention',
    KeyOnlyInputs,
    [
        triton_implementation(f'{__name__}.triton'),
        Implementation('folded', folded.run, reason_not_to_prefer=folded.reason_not_to_prefer),
        Implementation('plain', plain.run),
        Implementation('reference', lambda inputs: reference.key_only_attention(*inputs)),
    ],
)

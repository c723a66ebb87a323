"""Key-only attention (LinGlo), linear in the number of positions.

Shapes: B batch, N positions, C channels, h heads, d = C/h channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, reference
from .precision import precise_dtype, without_autocast
from .reference import Affine


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
        value: the same of the values' projection ``Wv``.
        gate: the same of ``U1``.
        out: the same of ``U2``.

    Returns:
        Output, (B, N, C), in the dtype of the projections.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    if x.dim() != 3 or x.shape[-1] != saliency.numel():
        raise ValueError(
            f'key_only_attention: x must be (B, N, C) with C = heads * head_dim = '
            f'{saliency.shape[0]} * {saliency.shape[-1]}, but x is {tuple(x.shape)}'
        )
    implementation = dispatch.choose('key_only_attention', x)
    return implementation(x, saliency, key, value, gate, out)


def global_context(keys: Tensor, saliency: Tensor) -> Tensor:
    """Saliency-weighted mean of the keys over all positions, in at least float32.

    Args:
        keys: keys, (B, N, C).
        saliency: saliency vectors, (h, d).

    Returns:
        Global context ``G``, (B, C).
    """
    heads, dim = saliency.shape
    with without_autocast(keys):
        precise = precise_dtype(keys)
        keys = keys.to(precise).unflatten(-1, (heads, dim))
        scores = torch.einsum('bnhd,hd->bhn', keys, saliency.to(precise) * dim**-0.5)
        weights = scores.softmax(dim=-1)
        return torch.einsum('bhn,bnhd->bhd', weights, keys).flatten(1)


def _plain(
    x: Tensor, saliency: Tensor, key: Affine, value: Affine, gate: Affine, out: Affine
) -> Tensor:
    keys = F.linear(x, *key)
    context = global_context(keys, saliency)
    values = F.linear(x, *value) * context.to(keys.dtype)[:, None]
    return F.linear(F.linear(values, *gate) + keys, *out)


dispatch.register('key_only_attention', 'plain', _plain)
dispatch.register('key_only_attention', 'reference', reference.key_only_attention)

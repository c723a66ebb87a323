"""Key-only attention (LinGlo), linear in the number of positions.

Shapes: B batch, N positions, C channels, h heads, d = C/h channels of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, reference
from .precision import precise_dtype, without_autocast
from .reference import Affine
from .torch_api import is_exporting

LEAST_SAVING = 1.1  # factor of multiply-adds from which folding pays


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
    args = (x, saliency, key, value, gate, out)
    return dispatch.choose('key_only_attention', *args)(*args)


def global_context(keys: Tensor, saliency: Tensor) -> Tensor:
    """Saliency-weighted mean of the keys over all positions, in at least float32.

    Args:
        keys: keys, (B, N, C).
        saliency: saliency vectors, (h, d).

    Returns:
        Global context ``G``, (B, C).
    """
    with without_autocast(keys):
        keys = keys.to(precise_dtype(keys)).unflatten(-1, saliency.shape)
        return torch.einsum('bhn,bnhd->bhd', _saliency_weights(keys, saliency), keys).flatten(1)


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
        return _saliency_weights(
            keys.to(precise_dtype(keys)).unflatten(-1, saliency.shape), saliency
        )


def _saliency_weights(keys: Tensor, saliency: Tensor) -> Tensor:
    """Weights (B, h, N) of keys (B, N, h, d)."""
    scores = torch.einsum('bnhd,hd->bhn', keys, saliency.to(keys.dtype) * keys.shape[-1] ** -0.5)
    return scores.softmax(dim=-1)


def _plain(
    x: Tensor, saliency: Tensor, key: Affine, value: Affine, gate: Affine, out: Affine
) -> Tensor:
    keys = F.linear(x, *key)
    context = global_context(keys, saliency)
    values = F.linear(x, *value) * context.to(keys.dtype)[:, None]
    return F.linear(F.linear(values, *gate) + keys, *out)


def _saliency_means(x: Tensor, vectors: Tensor) -> Tensor:
    """Means of x (B, N, C) weighted by ``softmax(x vectors^T)``, (B, h, C), for vectors (h, C)."""
    x = x.to(vectors.dtype)
    return F.linear(x, vectors).softmax(dim=1).transpose(1, 2) @ x


def folded(
    x: Tensor,
    saliency: Tensor,
    key: Affine,
    value: Affine,
    gate: Affine,
    out: Affine,
    saliency_means: Callable[[Tensor, Tensor], Tensor] = _saliency_means,
) -> Tensor:
    """One C x C matrix an image takes the place of the four projections: ``Y = x M + b``.

    The weights ``a`` of each head sum to one, so ``G = (sum_i a_i x_i) Wk``, and the scores are
    products of x with ``Wk saliency``: the keys are never built. Given G, all is linear in x, with
    ``M = Wv diag(G) U1 U2 + Wk U2``; the biases fold into b.
    """
    with without_autocast(x):
        precise = precise_dtype(x)
        # A list: torch.compile of torch 2.1 cannot unpack a generator.
        (key, key_bias), (value, value_bias), (gate, gate_bias), (out, out_bias) = [
            (weight.to(precise), 0.0 if bias is None else bias.to(precise))
            for weight, bias in (key, value, gate, out)
        ]
        keys = key.unflatten(0, saliency.shape)  # (h, d, C)
        vectors = torch.einsum('hd,hdc->hc', saliency.to(precise) * keys.shape[1] ** -0.5, keys)
        means = saliency_means(x, vectors)  # (B, h, C)
        context = torch.einsum('bhc,hdc->bhd', means, keys).flatten(1) + key_bias
        gate_out = out @ gate
        matrix = (gate_out * context[:, None]) @ value + out @ key  # (B, C out, C in)
        bias = (context * value_bias) @ gate_out.T
        constant = key_bias + gate_bias
        bias = bias + (constant if isinstance(constant, float) else constant @ out.T) + out_bias
    return torch.baddbmm(bias.to(x.dtype)[:, None], x, matrix.to(x.dtype).transpose(1, 2))


def folding_pays(x: Tensor, *settings: Tensor | Affine) -> str | None:
    """Why the projections had better not be folded, or ``None``; arguments as of the op."""
    if is_exporting():
        return 'a recording would keep the decision for one size'
    batch, positions, channels = x.shape
    # In units of C^2 multiply-adds an image: four products with N positions against one, the
    # matrix of the image, and its two factors that all images share.
    folded_cost = positions + channels * (1 + 2 / max(batch, 1))
    if 4 * positions < LEAST_SAVING * folded_cost:
        return 'too few positions for so many channels: the matrices cost more than they save'
    return None


dispatch.register('key_only_attention', 'folded', folded, pays=folding_pays)
dispatch.register('key_only_attention', 'plain', _plain)
dispatch.register('key_only_attention', 'reference', reference.key_only_attention)

"""The readable truth: each attention as its equations say, slow and exact.

Every fast path is tested against these functions, in float64 where exactness matters. They compute
in the dtype of their arguments and make no attempt to save time or memory.

Shapes: B batch, N positions, C channels, h heads, d = C/h channels of a head.
"""

import math

import torch
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,) of a linear map


def _affine(x: Tensor, weight_bias: Affine) -> Tensor:
    weight, bias = weight_bias
    y = x @ weight.T
    return y if bias is None else y + bias


def key_only_attention(
    x: Tensor, saliency: Tensor, key: Affine, value: Affine, gate: Affine, out: Affine
) -> Tensor:
    """Key-only attention, equations 2 to 4 of the LinGlo paper, head by head.

    Args:
        x: input, (B, N, C).
        saliency: one saliency vector for each head, (h, d).
        key: weight (C, C) and bias (C,) or None of the keys' projection.
        value: the same for the values.
        gate: ``U1`` of equation 4, applied to the gated values.
        out: ``U2`` of equation 4, applied to their sum with the keys.

    Returns:
        Output, (B, N, C).
    """
    keys, values = _affine(x, key), _affine(x, value)
    heads, dim = saliency.shape
    contexts = []
    for head in range(heads):
        head_keys = keys[..., head * dim : (head + 1) * dim]
        scores = head_keys @ saliency[head] / math.sqrt(dim)  # (B, N)
        weights = torch.softmax(scores, dim=1)  # equation 2
        contexts.append((weights[..., None] * head_keys).sum(dim=1))  # equation 3
    context = torch.cat(contexts, dim=-1)[:, None]  # (B, 1, C)
    return _affine(_affine(context * values, gate) + keys, out)  # equation 4

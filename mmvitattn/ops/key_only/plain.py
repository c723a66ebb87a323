"""Key-only attention as four projections."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dispatch import precise_dtype, without_autocast
from ..linear import linear

if TYPE_CHECKING:
    from . import KeyOnlyInputs


def run(inputs: 'KeyOnlyInputs') -> Tensor:
    """See :func:`mmvitattn.ops.key_only_attention`."""
    x, saliency, key, value, gate, out = inputs
    keys = linear(x, *key)
    with without_autocast(keys):
        precise = keys.to(precise_dtype(keys)).unflatten(-1, saliency.shape)
        weights = saliency_weights(precise, saliency)
        context = torch.einsum('bhn,bnhd->bhd', weights, precise).flatten(1)
    values = linear(x, *value) * context.to(keys.dtype)[:, None]
    return linear(linear(values, *gate) + keys, *out)


def saliency_weights(keys: Tensor, saliency: Tensor) -> Tensor:
    """Weights (B, h, N) of keys (B, N, h, d) for saliency vectors (h, d)."""
    scores = torch.einsum('bnhd,hd->bhn', keys, saliency.to(keys.dtype) * keys.shape[-1] ** -0.5)
    return scores.softmax(dim=-1)

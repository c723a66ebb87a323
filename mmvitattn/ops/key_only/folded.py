"""Key-only attention with its four projections folded into one matrix for each image."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import is_exporting, precise_dtype, without_autocast
from ..linear import linear, linear_per_image

if TYPE_CHECKING:
    from . import KeyOnlyInputs

LEAST_SAVING = 1.1  # ratio of multiply-adds from which folding is faster


def saliency_means(x: Tensor, vectors: Tensor) -> Tensor:
    """Means of x (B, N, C) weighted by ``softmax(x vectors^T)``, (B, h, C), for vectors (h, C)."""
    x = x.to(vectors.dtype)
    return F.linear(x, vectors).softmax(dim=1).transpose(1, 2) @ x


def run(
    inputs: 'KeyOnlyInputs', saliency_means: Callable[[Tensor, Tensor], Tensor] = saliency_means
) -> Tensor:
    """Computes ``Y = x M + b`` with one C x C matrix M for each image.

    The weights ``a`` of each head sum to one, so ``G = (sum_i a_i x_i) Wk``, and the scores are
    products of x with ``Wk saliency``: the keys are never computed. Given G, the rest is linear in
    x, with ``M = Wv diag(G) U1 U2 + Wk U2``; the biases fold into b.
    """
    x, saliency, *affines = inputs
    with without_autocast(x):
        precise = precise_dtype(x)
        # A list: torch.compile of torch 2.1 cannot unpack a generator.
        (key, key_bias), (value, value_bias), (gate, gate_bias), (out, out_bias) = [
            (weight.to(precise), 0.0 if bias is None else bias.to(precise))
            for weight, bias in affines
        ]
        keys = key.unflatten(0, saliency.shape)  # (h, d, C)
        vectors = torch.einsum('hd,hdc->hc', saliency.to(precise) * keys.shape[1] ** -0.5, keys)
        means = saliency_means(x, vectors)  # (B, h, C)
        context = torch.einsum('bhc,hdc->bhd', means, keys).flatten(1) + key_bias
        gate_out = linear(out, gate.T)
        matrix = linear(gate_out * context[:, None], value.T)  # (B, C out, C in)
        matrix = matrix + linear(out, key.T)
        bias = (context * value_bias) @ gate_out.T
        constant = key_bias + gate_bias
        bias = bias + (constant if isinstance(constant, float) else constant @ out.T) + out_bias
    return linear_per_image(x, matrix.to(x.dtype), bias.to(x.dtype))


def reason_not_to_prefer(inputs: 'KeyOnlyInputs') -> str | None:
    """Why folding the projections is not faster, or ``None``."""
    if is_exporting():
        return 'tracing would hard-code this choice, which depends on the input size'
    batch, positions, channels = inputs.x.shape
    # In units of C^2 multiply-adds an image: four products with N positions against one, the
    # matrix of the image, and its two factors that all images share.
    folded_cost = positions + channels * (1 + 2 / max(batch, 1))
    if 4 * positions < LEAST_SAVING * folded_cost:
        return 'too few positions for this number of channels: folding costs more than it saves'
    return None

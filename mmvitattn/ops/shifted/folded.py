"""Attention over shifted variants without computing their keys and values.

Shapes as in :mod:`mmvitattn.ops.shifted`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import precise_dtype, without_autocast
from ..reference import Affine

if TYPE_CHECKING:
    from . import LocalShiftInputs


def fold_queries(tokens: Tensor, query: Affine, key: Affine, num_heads: int) -> Tensor:
    """Queries of each of N patches with the keys' projection folded in, (h, N, C)."""
    channels = tokens.shape[-1]
    dim = channels // num_heads
    precise = precise_dtype(tokens)
    weight, bias = query[0].to(precise), None if query[1] is None else query[1].to(precise)
    queries = F.linear(tokens[0].to(precise), weight, bias).unflatten(-1, (num_heads, dim))
    key_weight = key[0].to(precise).view(-1, dim, channels)  # (h or 1, d, C)
    return torch.matmul(queries.transpose(0, 1) * dim**-0.5, key_weight)


def variant_weights(tokens: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, h, T) of the variants of each patch, and the variants, (N, T, C)."""
    variants = tokens.to(queries.dtype).transpose(0, 1)
    return torch.bmm(queries.transpose(0, 1), variants.transpose(1, 2)).softmax(dim=-1), variants


def pool_variants(tokens: Tensor, queries: Tensor) -> Tensor:
    """Means of the variants (T, N, C) for queries (h, N, C), (h, N, C)."""
    return torch.bmm(*variant_weights(tokens, queries)).transpose(0, 1)


def run(
    inputs: 'LocalShiftInputs', pool_variants: Callable[[Tensor, Tensor], Tensor] = pool_variants
) -> Tensor:
    """See :func:`mmvitattn.ops.local_shift_attention`."""
    x, query, key, value, num_heads = inputs
    grid, channels = x.shape[1:4], x.shape[-1]
    tokens, dim = x.flatten(1, 3), channels // num_heads
    with without_autocast(x):
        means = pool_variants(tokens, fold_queries(tokens, query, key, num_heads))
    values = value[0].view(-1, dim, channels)
    output = torch.matmul(means.to(x.dtype), values.transpose(1, 2)).transpose(0, 1)  # (N, h, d)
    if value[1] is not None:
        output = output + value[1].view(-1, dim).to(output.dtype)
    return output.flatten(1).unflatten(0, grid)

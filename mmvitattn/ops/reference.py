"""Reference implementations: each op written as its equations, slow and exact.

All other implementations are tested against these functions, in float64 where exactness matters.
They compute in the dtype of their arguments and make no attempt to save time or memory.

Shapes: B batch, N positions or H W grid, C channels, h heads, d = C/h channels of a head, k window
side, q learned queries, T shifted variants, E channels of an embedding, K kernel side.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
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

    Arguments and result: see :func:`mmvitattn.ops.key_only_attention`.
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


def learned_query_attention(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int = 1,
) -> Tensor:
    """Learned-query attention (QnA paper, section 4), window by window.

    Arguments and result: see :func:`mmvitattn.ops.learned_query_attention`.
    """
    height, width = scores.shape[1:3]
    tables = [
        table
        if table is None
        else table.expand(kernel_size**2, -1, -1).unflatten(0, (-1, kernel_size))
        for table in (position_bias, attention_scale)
    ]
    reach = kernel_size // 2
    outputs = []
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            top, left = max(0, y - reach), max(0, x - reach)
            window = (slice(None), slice(top, y + reach + 1), slice(left, x + reach + 1))
            window_scores = scores[window]  # (B, rows, columns, q, h), inside the image
            rows, columns = window_scores.shape[1:3]
            first_row, first_column = top - (y - reach), left - (x - reach)
            bias, scale = (
                table
                if table is None
                else table[first_row : first_row + rows, first_column : first_column + columns]
                for table in tables
            )
            logits = window_scores if bias is None else window_scores + bias
            weights = logits.flatten(1, 2).softmax(dim=1).unflatten(1, (rows, columns))
            weights = weights if scale is None else weights * scale
            outputs.append(torch.einsum('byxqh,byxhd->bhd', weights, values[window]))
    return torch.stack(outputs, dim=1).unflatten(1, (-(-height // stride), -1))


def branch_statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Batch mean and (biased) variance of parallel 3x3 depth-wise convolutions of one map.

    Arguments and result: see :func:`mmvitattn.ops.branch_statistics`.
    """
    maps = torch.stack([F.conv2d(x, weight, padding=1, groups=x.shape[1]) for weight in weights])
    return maps.mean((1, 3, 4)), maps.var((1, 3, 4), unbiased=False)


def shifted_patch_embedding(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Sequence[tuple[int, int]],
    stride: int,
    padding: int,
    border: str,
) -> Tensor:
    """Convolutions of shifted images (SAG paper, section 3.1), one by one.

    Arguments and result: see :func:`mmvitattn.ops.shifted_patch_embedding`.
    """
    image = image.permute(0, 3, 1, 2)
    rows, columns = ((n + 2 * padding - weight.shape[-1]) // stride + 1 for n in image.shape[2:])
    embeddings = []
    for t, (down, right) in enumerate(shifts):
        if border == 'roll':
            shifted = image.roll((down, right), dims=(2, 3))
        else:
            shifted = torch.cat([image[:, :, image.shape[2] - down :], image], dim=2)
            shifted = torch.cat([shifted[..., image.shape[3] - right :], shifted], dim=3)
        variant_bias = None if bias is None else bias[t]
        embedding = F.conv2d(shifted, weight[t], variant_bias, stride, padding)
        embeddings.append(embedding[:, :, :rows, :columns].permute(0, 2, 3, 1))
    return torch.stack(embeddings)


def local_shift_attention(
    x: Tensor, query: Affine, key: Affine, value: Affine, num_heads: int
) -> Tensor:
    """Attention of each patch to its shifted variants, equations 1 to 4 of the SAG paper.

    Arguments and result: see :func:`mmvitattn.ops.local_shift_attention`.
    """
    dim = x.shape[-1] // num_heads
    queries = _affine(x[0], query).unflatten(-1, (num_heads, dim))
    keys = _affine(x, key).unflatten(-1, (-1, dim))
    values = _affine(x, value).unflatten(-1, (-1, dim))
    scores = (queries * keys).sum(dim=-1) / math.sqrt(dim)  # (T, B, H, W, h), equation 3
    weights = torch.softmax(scores, dim=0)
    return (weights[..., None] * values).sum(dim=0).flatten(-2)  # equation 4

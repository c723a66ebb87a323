"""Learned-query attention on a stack of all windows, for export.

Slices and loops are the same for every size of the map, so that what is recorded at one size holds
for all. It materialises the weights of all k*k offsets.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def window_stack(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    logits = torch.stack(list(_shifted(scores, kernel_size, stride, float('-inf'))))
    if position_bias is not None:
        logits = logits + position_bias[:, None, None, None]
    weights = logits.softmax(dim=0)  # (k*k, B, H', W', q, h)
    if attention_scale is not None:
        weights = weights * attention_scale[:, None, None, None]
    weights = weights.sum(dim=4)[..., None].unbind()
    shifted = _shifted(values.to(scores.dtype), kernel_size, stride, 0.0)
    return sum(weight * value for weight, value in zip(weights, shifted, strict=True))


def _shifted(x: Tensor, kernel_size: int, stride: int, outside: float) -> Iterator[Tensor]:
    """The map as each window offset reads it, (B, H', W', ...), row by row."""
    reach = kernel_size // 2
    x = F.pad(x, (0, 0, 0, 0, reach, reach, reach, reach), value=outside)
    spans = [slice(i, (i - 2 * reach) or None, stride) for i in range(kernel_size)]
    for rows in spans:
        for columns in spans:
            yield x[:, rows, columns]

"""Learned-query attention on a stack of all windows, for export.

Slices and loops do not depend on the size of the map, so a traced graph is correct for every size.
The weights of all k*k offsets exist at once.
"""

from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from . import LearnedQueryInputs


def run(inputs: 'LearnedQueryInputs') -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    weights = window_weights(inputs)[..., None].unbind()
    values = inputs.values.to(inputs.scores.dtype)
    shifted = _shifted(values, 0.0, inputs.kernel_size, inputs.stride)
    return reduce(torch.add, map(torch.mul, weights, shifted))


def window_weights(inputs: 'LearnedQueryInputs') -> Tensor:
    """The factors of the values in each window, summed over the queries, (k*k, B, H', W', h)."""
    scores, _, bias, scale, *window = inputs
    scores = torch.stack(list(_shifted(scores, float('-inf'), *window)))  # (k*k, B, H', W', q, h)
    bias = bias[:, None, None, None]
    # onnxruntime's Softmax over the first axis takes several times as long as these operators. The
    # bias is added to the small difference: added to a large score, it would lose its digits.
    largest = (scores + bias).detach().amax(dim=0)
    exponentials = (scores - largest + bias).exp()
    weights = exponentials / exponentials.sum(dim=0) * scale[:, None, None, None]
    return reduce(torch.add, weights.unbind(4))


def _shifted(x: Tensor, outside: float, kernel_size: int, stride: int) -> Iterator[Tensor]:
    """The map as each window offset reads it, (B, H', W', ...), row by row."""
    reach = kernel_size // 2
    x = F.pad(x, (0, 0, 0, 0, reach, reach, reach, reach), value=outside)
    spans = [slice(i, (i - 2 * reach) or None, stride) for i in range(kernel_size)]
    for rows in spans:
        for columns in spans:
            yield x[:, rows, columns]

"""Learned-query attention in ONNX files: the ratio of convolutions wherever the scores allow it.

The file tests the spread of the scores and has both forms, as the branches of an ``If``: the
convolutions of :mod:`.convolution`, and the windows' softmax of :mod:`.window_stack`.
"""

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dispatch import is_torch_exporting
from . import window_stack
from .convolution import MAX_SPREAD, convolve, exponentiate, make_kernel, spread

if TYPE_CHECKING:
    from . import LearnedQueryInputs


def reason_not_to_run(inputs: 'LearnedQueryInputs') -> str | None:
    """Why the file cannot choose, or ``None``."""
    if not (is_torch_exporting() and torch.onnx.is_in_onnx_export()):
        return "only PyTorch's newer ONNX exporter writes a choice that depends on the scores"
    return None


def run(inputs: 'LearnedQueryInputs') -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    # torch.cond refuses tensors that share their memory, such as the parts of a projection.
    scores, values = inputs.scores.contiguous(), inputs.values.to(inputs.scores.dtype).contiguous()

    def by_convolution(scores: Tensor, values: Tensor) -> Tensor:
        return _ratio(inputs._replace(scores=scores, values=values)).contiguous()

    def by_window(scores: Tensor, values: Tensor) -> Tensor:
        return window_stack.run(inputs._replace(scores=scores, values=values)).contiguous()

    fits = spread(scores, inputs.bias) <= MAX_SPREAD  # false if it is NaN
    return torch.cond(fits, by_convolution, by_window, (scores, values))


def _ratio(inputs: 'LearnedQueryInputs') -> Tensor:
    """As :func:`.convolution.run`, for all images at once and without writing into tensors."""
    scores, values = (x.permute(0, 3, 4, 1, 2) for x in inputs[:2])
    (queries, heads), dim = inputs.bias.shape[1:], values.shape[2]
    kernel = make_kernel(inputs.bias, inputs.scale, dim).unflatten(0, (queries, heads, dim + 1))
    e = exponentiate(scores)[:, :, :, None]
    # Two convolutions: one, as in eager mode, would need the concatenation of its inputs.
    numerator = convolve(e * values[:, None], kernel[:, :, :-1].flatten(0, 2), inputs.stride)
    denominator = convolve(e, kernel[:, :, -1:].flatten(0, 2), inputs.stride)
    return reduce(torch.add, (numerator / denominator).unbind(1)).permute(0, 3, 4, 1, 2)

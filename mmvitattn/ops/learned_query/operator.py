"""Learned-query attention as one operator of PyTorch, which torch.compile on CPUs calls as it is.

The compiler can neither trace the choice by the scores' spread nor fuse the loop over the window
offsets: compiled, the loop takes twice the time of the convolutions, and minutes to compile. Inside
the operator the choice is made as in eager mode, for each call.

Shapes as in :mod:`mmvitattn.ops.learned_query`.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dispatch import HAS_OPERATORS, is_compiling, is_exporting
from ..triton_support import save_inputs
from . import convolution, offset_loop

if TYPE_CHECKING:
    from . import LearnedQueryInputs

_INPUTS = 'Tensor scores, Tensor values, Tensor bias, Tensor scale, int kernel_size, int stride'


def reason_not_to_run(inputs: 'LearnedQueryInputs') -> str | None:
    """Why the operator cannot take this input, or ``None``."""
    if not HAS_OPERATORS:
        return f'needs PyTorch 2.4 (torch.library.custom_op), this is {torch.__version__}'
    if inputs.scores.device.type != 'cpu':
        return 'runs on CPUs only'
    if is_exporting():
        return 'an exported program may contain only operators of PyTorch'
    return None


def reason_not_to_prefer(inputs: 'LearnedQueryInputs') -> str | None:
    """Why another implementation is faster, or ``None``."""
    return None if is_compiling() else 'in eager mode it only adds a call'


def run(inputs: 'LearnedQueryInputs') -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    return _channels_last(torch.ops.mmvitattn.learned_query_cpu(*inputs))


def _form(arguments: tuple) -> tuple[ModuleType, 'LearnedQueryInputs']:
    from . import LearnedQueryInputs

    inputs = LearnedQueryInputs(*arguments)
    return (offset_loop if convolution.reason_not_to_run(inputs) else convolution), inputs


def _channels_first(x: Tensor) -> Tensor:
    """From (B, H, W, ...) to contiguous (B, ..., H, W), the layout in which both forms compute."""
    return x.permute(0, 3, 4, 1, 2).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 4, 1, 2)


if HAS_OPERATORS:

    @torch.library.custom_op(
        'mmvitattn::learned_query_cpu', mutates_args=(), schema=f'({_INPUTS}) -> Tensor'
    )
    def _attend(*arguments: Any) -> Tensor:
        form, inputs = _form(arguments)
        return _channels_first(form.run(inputs))

    @_attend.register_fake
    def _(scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor, k: int, s: int) -> Tensor:
        grid = [(size - 1) // s + 1 for size in scores.shape[1:3]]
        return scores.new_empty(values.shape[0], *values.shape[3:], *grid)

    @torch.library.custom_op(
        'mmvitattn::learned_query_cpu_backward',
        mutates_args=(),
        schema=f'(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)',
    )
    def _differentiate(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        form, inputs = _form(arguments)
        grad_scores, grad_values, *tables = form.gradients(_channels_last(grad), inputs)
        maps = _channels_first(grad_scores), _channels_first(grad_values.to(inputs.values.dtype))
        return *maps, *(t.contiguous() for t in tables)

    @_differentiate.register_fake
    def _(grad: Tensor, scores: Tensor, values: Tensor, *others: Any) -> tuple[Tensor, ...]:
        maps = (t.new_empty(_channels_first(t).shape) for t in (scores, values))
        return *maps, *(t.new_empty(t.shape) for t in others[:2])

    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, *ctx.settings)
        grads = torch.ops.mmvitattn.learned_query_cpu_backward(grad, *arguments)
        return *map(_channels_last, grads[:2]), *grads[2:], None, None

    _attend.register_autograd(_backward, setup_context=save_inputs)

"""What the Triton kernels share: whether they can be used, checks of their inputs, launching.

Triton is not imported where the kernels cannot run. With ``TRITON_INTERPRET=1`` set before this
package is imported, Triton's interpreter runs them on the CPU, for tests.
"""

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .dispatch import HAS_OPERATORS, Implementation, is_exporting

INTERPRETED = os.environ.get('TRITON_INTERPRET', '0').lower() in ('1', 'true', 'yes', 'on', 'y')
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOWEST = -3.4e38  # start of a running maximum; unlike -inf, -inf minus it is not NaN
MAX_OFFSET = 2**31 - 1  # of an element within one image: such offsets are 32-bit integers
_CUDA_ONLY = 'runs on CUDA devices only'


def _why_unavailable() -> str | None:
    if not HAS_OPERATORS:
        return f'needs PyTorch 2.4 (torch.library.custom_op), this is {torch.__version__}'
    if torch.version.cuda is None and not INTERPRETED:
        return 'this PyTorch is built without CUDA'
    try:
        triton = importlib.import_module('triton')
    except ImportError:
        return 'Triton is not installed'
    if int(triton.__version__.split('.')[0]) < 3:
        return f'needs Triton 3, this is {triton.__version__}'
    return None


UNAVAILABLE = _why_unavailable()


def _unavailable(inputs: Any) -> str | None:
    return UNAVAILABLE


def triton_implementation(module: str) -> Implementation:
    """The implementation 'triton' of an op.

    Args:
        module: full name of the module with the kernels, which has ``run``, ``reason_not_to_run``
            and ``reason_not_to_prefer``; it is imported only where Triton can be used.
    """
    if UNAVAILABLE is not None:
        never_called = _unavailable
        return Implementation('triton', never_called, reason_not_to_run=_unavailable)
    kernels = importlib.import_module(module)
    tests = kernels.reason_not_to_run, kernels.reason_not_to_prefer
    return Implementation('triton', kernels.run, *tests)


def unsupported(x: Tensor, *others: Tensor) -> str | None:
    """Why kernels cannot read ``x``, the largest input, or one of the others, or ``None``."""
    if x.device.type != 'cuda' and not INTERPRETED:
        return _CUDA_ONLY
    if is_exporting():
        return 'an exported program may contain only operators of PyTorch'
    tensors = [x, *others]
    if any(t.dtype not in DTYPES for t in tensors):
        return 'takes float32, bfloat16 and float16'
    if any(t.device != x.device for t in tensors):
        return 'the arguments are on different devices'
    if x.numel() == 0:
        return 'the input is empty'
    return None


def only_interpreted(x: Tensor) -> str | None:
    """Why not to prefer kernels that only Triton's interpreter could run, or ``None``."""
    if x.device.type == 'cuda':
        return None
    return "Triton's interpreter is for tests" if INTERPRETED else _CUDA_ONLY


def device_of(x: Tensor) -> AbstractContextManager:
    """Context for a launch: Triton launches on the current device, not on that of its arguments."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def save_inputs(ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
    """Keeps an operator's inputs for its backward pass, and its outputs if they are several."""
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    ctx.save_for_backward(*tensors, *(output if isinstance(output, tuple) else ()))
    ctx.settings = inputs[len(tensors) :]

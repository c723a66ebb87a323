"""What the Triton kernels share: whether they are available, launching, and their registration.

Triton is not imported where the kernels cannot run anyway. Triton's interpreter, with
``TRITON_INTERPRET=1`` set before this package is imported, runs them on the CPU for tests.
"""

import importlib
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import dispatch
from .torch_api import is_exporting

INTERPRETED = os.environ.get('TRITON_INTERPRET', '0').lower() in ('1', 'true', 'yes', 'on', 'y')
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOWEST = -3.4e38  # starts a running maximum; its difference with -inf is no NaN
MAX_OFFSET = 2**31 - 1  # of an element inside one image: such offsets are 32-bit integers
_ELSEWHERE = 'runs on CUDA devices only'
_is_torch_export = getattr(torch.compiler, 'is_exporting', lambda: False)  # torch 2.7
_MODULES = {
    'key_only_attention': 'key_only_triton',
    'learned_query_attention': 'learned_query_triton',
    'local_shift_attention': 'shifted_triton',
}


def _why_unavailable() -> str | None:
    if not hasattr(torch.library, 'register_autograd'):
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


def register_kernels() -> None:
    """Registers each op's Triton implementation ahead of the others, or why there is none."""
    for op, module in _MODULES.items():
        if UNAVAILABLE is None:
            kernels = importlib.import_module(f'.{module}', __package__)
            tests = {name: getattr(kernels, name) for name in ('can_run', 'pays')}
            dispatch.register(op, 'triton', kernels.run, **tests, first=True)
        else:
            dispatch.register(op, 'triton', _never_run, _unavailable, first=True)


def _never_run(*args: object) -> Tensor:
    raise RuntimeError(UNAVAILABLE)


def _unavailable(*args: object) -> str | None:
    return UNAVAILABLE


def cannot_take(x: Tensor, *others: Tensor | None) -> str | None:
    """Why kernels cannot read ``x``, the largest input, or one of the others; else ``None``."""
    if x.device.type != 'cuda' and not INTERPRETED:
        return _ELSEWHERE
    if is_exporting() or _is_torch_export():
        return 'a recording takes operators of PyTorch alone'
    tensors = [x, *(t for t in others if t is not None)]
    if any(t.dtype not in DTYPES for t in tensors):
        return 'takes float32, bfloat16 and float16'
    if any(t.device != x.device for t in tensors):
        return 'the arguments are on different devices'
    if x.numel() == 0:
        return 'the input is empty'
    return None


def only_interpreted(x: Tensor) -> str | None:
    """A reason against kernels that only Triton's interpreter could run, else ``None``."""
    if x.device.type == 'cuda':
        return None
    return "Triton's interpreter is for tests" if INTERPRETED else _ELSEWHERE


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length()


def device_of(x: Tensor) -> AbstractContextManager:
    """Context for a launch: Triton launches on the current device, not on that of its arguments."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()

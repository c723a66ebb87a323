"""Mixed precision on any device: float16 or bfloat16 on GPUs, bfloat16 on CPUs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from ..errors import UsageError
from ..ops.depthwise import ONEDNN_HAS_BFLOAT16
from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """MMEngine's wrapper of an optimizer, with forward passes in bfloat16 autocast on the CPU.

    MMEngine's ``AmpOptimWrapper`` refuses CPUs. Weights and optimizer state stay in float32, and
    the exponents of bfloat16 are those of float32, so the loss is not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enables autocast; see MMEngine's class."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def use_mixed_precision(cfg: Config) -> None:
    """Selects the optimizer wrapper of mixed precision for the present device, in place.

    Args:
        cfg: config of a training; an ``optim_wrapper.dtype`` that it states is kept.

    Raises:
        UsageError: if the config asks for float16 and there is no GPU.
    """
    warn_if_slow()
    wrapper = cfg.optim_wrapper
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    dtype = wrapper.pop('dtype', 'bfloat16')
    if dtype != 'bfloat16':
        raise UsageError(
            f'--amp: optim_wrapper.dtype={dtype!r} needs a GPU, and there is none here: CPUs have '
            "no fast float16 arithmetic; use 'bfloat16'"
        )
    wrapper.pop('loss_scale', None)
    wrapper.type = 'mmvitattn.CPUAmpOptimWrapper'


def warn_if_slow() -> None:
    """Says on the error stream if the present CPU is faster without mixed precision."""
    if not (ONEDNN_HAS_BFLOAT16 or torch.cuda.is_available()):
        print(
            '--amp: this CPU lacks what PyTorch needs to be fast in bfloat16 (on x86, AVX-512): it '
            'takes many times as long as float32; leave out --amp',
            file=sys.stderr,
        )

"""Arithmetic in full precision, whatever the inputs and autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def precise_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if one of the tensors has it, else float32."""
    # Not torch.promote_types, which torch.compile of torch 2.1 cannot trace.
    return torch.float64 if torch.float64 in [t.dtype for t in tensors] else torch.float32


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Context in which autocast does not touch operations on ``x``'s device."""
    if x.device.type == 'meta':  # where FLOPs are counted; autocast does not know it
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)

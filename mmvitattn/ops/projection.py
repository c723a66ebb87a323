"""Linear maps between channels-last maps and the channels-first ones that CPU kernels work on.

A matrix product reads and writes either layout at the same speed, so that changing it here costs
nothing; done by itself, a transposition takes as long as the product.

Shapes: B batch, H W grid, N = H W positions, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .torch_api import is_compiling, is_exporting


def project_in(x: Tensor, weight: Tensor) -> Tensor:
    """Linear map whose output lies channels-first in memory on CPUs.

    Args:
        x: (B, H, W, C), contiguous.
        weight: (C', C).

    Returns:
        (B, H, W, C').
    """
    if not _changes_layout(x, weight):
        return F.linear(x, weight)
    maps = _ProjectIn.apply(x.flatten(1, 2), weight)
    return maps.unflatten(2, x.shape[1:3]).permute(0, 2, 3, 1)


def project_out(x: Tensor, weight: Tensor) -> Tensor:
    """Linear map back to a contiguous output, of an input that lies channels-first on CPUs.

    Args:
        x: (B, H, W, C).
        weight: (C', C).

    Returns:
        (B, H, W, C'), contiguous.
    """
    if not _changes_layout(x, weight):
        return F.linear(x, weight)
    y = _ProjectOut.apply(x.permute(0, 3, 1, 2).flatten(2), weight)
    return y.unflatten(1, x.shape[1:3])


def _changes_layout(x: Tensor, weight: Tensor) -> bool:
    eager = not (is_compiling() or is_exporting())
    return (
        eager
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype
        and not torch.is_autocast_cpu_enabled()
    )


class _ProjectIn(torch.autograd.Function):
    """From (B, N, C) to (B, C', N)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return weight.expand(len(x), -1, -1) @ x.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = ctx.needs_input_grad
        return (
            grad.mT @ weight.expand(len(x), -1, -1) if grad_x else None,
            (grad @ x).sum(0) if grad_weight else None,
        )


class _ProjectOut(torch.autograd.Function):
    """From (B, C, N) to (B, N, C')."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.mT @ weight.T.expand(len(x), -1, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = ctx.needs_input_grad
        return (
            weight.T.expand(len(x), -1, -1) @ grad.mT if grad_x else None,
            (grad.mT @ x.mT).sum(0) if grad_weight else None,
        )

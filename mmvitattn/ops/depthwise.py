"""Depth-wise convolution with a fast gradient on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from .dispatch import HAS_OPERATORS, as_autocast, is_compiling, precise_dtype, without_autocast

TILE = 28  # positions on a side
# Without it (CPUs with AVX2 alone), PyTorch multiplies bfloat16 many times as slowly as float32,
# and sums the gradients of convolutions in bfloat16.
ONEDNN_HAS_BFLOAT16 = (
    torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depth-wise convolution of stride 1 that keeps the size (zero padding).

    On the CPU the gradient for the input is computed as the convolution with the flipped kernel:
    PyTorch's own is twice as slow on channels_last maps (torch 2.14), or hundreds of times
    (torch 2.1).

    Args:
        x: input, (B, C, H, W), any memory format.
        weight: (C, 1, k, k) with odd k.
        bias: (C,) or None.

    Returns:
        Output, (B, C, H, W).
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    unrolled = is_compiling() and (weight.shape[-1] > 3 or not HAS_OPERATORS)  # all the tiles
    if trains and not unrolled and x.device.type == 'cpu':
        x, like_weight = as_autocast(x, weight[:0])
        if x.dtype == like_weight.dtype:
            with without_autocast(x):
                return _DepthwiseConv2d.apply(x, weight, bias)
    padding = int(weight.shape[-1]) // 2  # plain numbers, also while tracing
    return F.conv2d(x, weight, bias, padding=padding, groups=int(x.shape[1]))


class _DepthwiseConv2d(torch.autograd.Function):
    # The parameters are converted to the map's precision in here, so that their gradients are not:
    # RPCPE takes small differences of them.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.parameter_dtype = weight.dtype
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        precise = precise_dtype(x)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            padding = weight.shape[-1] // 2
            grad_x = F.conv2d(grad, weight.flip(-1, -2), padding=padding, groups=x.shape[1])
        if ctx.needs_input_grad[1]:
            maps = (x, grad) if ONEDNN_HAS_BFLOAT16 else (x.to(precise), grad.to(precise))
            grad_weight = correlate(*maps, weight.shape[-1]).to(ctx.parameter_dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = channel_sum(grad.to(precise)).to(ctx.parameter_dtype)
        return grad_x, grad_weight, grad_bias


def correlate(x: Tensor, other: Tensor, kernel_size: int) -> Tensor:
    """``sum_p other[p] x~[p + k]`` for all offsets k: a depth-wise convolution's weight gradient.

    PyTorch's own is slow for kernels larger than 3 x 3. Here ``x`` is convolved with ``other`` as
    the kernel, at the speed of forward convolutions. This is done in tiles, as that code is made
    for small kernels; the shorter sums also have smaller rounding errors.

    Args:
        x: (B, C, H, W).
        other: map of the same shape.
        kernel_size: odd side k.

    Returns:
        (C, 1, k, k), summed over the batch.
    """
    if kernel_size <= 3:
        # Maps less than three positions wide or high have no fast kernel. A compiler would make one
        # graph for each kind of size.
        missing = [0 if is_compiling() else max(0, 3 - side) for side in (x.shape[3], x.shape[2])]
        if any(missing):
            x, other = (F.pad(t, (0, missing[0], 0, missing[1])) for t in (x, other))
        return correlate_by_backward(x, other, kernel_size, kernel_size // 2)
    result = x.new_zeros(x.shape[1], 1, kernel_size, kernel_size)
    reach, (height, width) = kernel_size // 2, x.shape[2:]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = other[:, :, top : top + TILE, left : left + TILE]
            bottom, right = top + tile.shape[2], left + tile.shape[3]
            outside = (reach - left, right + reach - width, reach - top, bottom + reach - height)
            rows = slice(max(0, top - reach), bottom + reach)
            columns = slice(max(0, left - reach), right + reach)
            around = F.pad(x[:, :, rows, columns], [max(0, n) for n in outside])
            for image, kernel in zip(around, tile, strict=True):
                result += F.conv2d(image[None], kernel[:, None], groups=len(kernel))[0][:, None]
    return result


def correlate_by_backward(x: Tensor, other: Tensor, kernel_size: int, padding: int) -> Tensor:
    """As :func:`correlate`, for any padding, by PyTorch's gradient of a convolution."""
    shape = (x.shape[1], 1, kernel_size, kernel_size)
    grad = conv2d_weight(x, shape, other, padding=padding, groups=x.shape[1])
    # With the strides of a contiguous parameter, as DistributedDataParallel expects.
    return grad.flatten().view(shape)


def channel_sum(x: Tensor) -> Tensor:
    """Sum of a (B, C, H, W) map over all but the channels, (C,)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2).sum(0)  # much faster than sum((0, 2, 3)) on CPU

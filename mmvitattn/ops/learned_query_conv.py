"""Learned-query attention as a ratio of depth-wise convolutions, for CPUs.

With ``e = exp(s - max s)``, the maximum over the image for each query and head, the weighted sum
over a window is a ratio of two sums that slide over the map: of ``e v`` with the kernel
``exp(bias) scale``, and of ``e`` with ``exp(bias)``. Both are depth-wise convolutions, for which
PyTorch has its fastest code. Unlike the window's own maximum, the image's may be so far above a
window's scores that all their exponentials vanish: the spread of the scores is checked first.

Shapes: B batch, H W grid, h heads, d channels of a head, k window side, q learned queries, n = q h
(d + 1) channels of the convolved maps: ``e v`` and, as the last channel of each head, ``e``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .depthwise import correlate
from .learned_query_loop import full_tables
from .torch_api import is_compiling, is_exporting

MAX_SPREAD = 60.0  # exp(-60) = 9e-27: products of two such numbers are still normal in float32


def can_run(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> str | None:
    """Why the convolutions cannot take this input, or ``None``; arguments as of the op."""
    if scores.device.type != 'cpu':
        return 'the check of the scores would have to wait for the device'
    if is_compiling() or is_exporting():
        return 'the check of the scores would break the graph'
    if values.dtype != scores.dtype:
        return 'it runs in full precision alone'
    with torch.no_grad():
        spread = (scores.amax((1, 2)) - scores.amin((1, 2))).max()
        if position_bias is not None:
            spread = spread + (position_bias.max() - position_bias.min())
    if not spread.item() <= MAX_SPREAD:  # also where it is NaN
        return f'the scores of an image spread over more than {MAX_SPREAD:g}'
    return None


def pays(scores: Tensor, *settings: Tensor | None | int) -> str | None:
    """Why another implementation is better, or ``None``; arguments as of the op."""
    kernel_size, stride = settings[-2:]
    if stride > 1 and kernel_size < 5:
        return 'few outputs and small windows: the loop over offsets is as fast'
    return None


def convolution(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: int,
    stride: int,
) -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`; for inputs that :func:`can_run` admits."""
    bias, scale = full_tables(scores, position_bias, attention_scale, kernel_size)
    return _RatioOfConvolutions.apply(scores, values, bias, scale, kernel_size, stride)


class _RatioOfConvolutions(torch.autograd.Function):
    """Goes image by image, so that what is in work stays small and close; keeps no large map.

    The backward computes the convolutions again. Their gradients are convolutions as well: for the
    input, of the gradient with the flipped kernel; for the kernel, of the input with the gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        scores: Tensor,
        values: Tensor,
        bias: Tensor,
        scale: Tensor,
        kernel_size: int,
        stride: int,
    ) -> Tensor:
        kernel = _kernel(bias, scale, values.shape[-1])
        grid = (-(-size // stride) for size in scores.shape[1:3])
        output = values.new_empty(len(scores), *grid, *values.shape[3:])
        for image, e in enumerate(_exponentials(scores)):
            sums = _convolve(_weighted(e, values[image]), kernel, stride, e.shape[2:])
            torch.sum(sums[..., :-1].div_(sums[..., -1:]), dim=2, out=output[image])
        ctx.save_for_backward(scores, values, bias, scale)
        ctx.stride = stride
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients through those of numerator N, g / D, and denominator D, - sum(g N / D) / D."""
        scores, values, bias, scale = ctx.saved_tensors
        kernel = _kernel(bias, scale, values.shape[-1])
        grad_scores, grad_values = torch.empty_like(scores), torch.empty_like(values)
        grad_kernel = torch.zeros_like(kernel)
        for image, e in enumerate(_exponentials(scores)):
            convolved, v = _weighted(e, values[image]), values[image, :, :, None]
            sums = _convolve(convolved, kernel, ctx.stride, e.shape[2:])
            grad_sums = _grad_of_sums(sums, grad[image, :, :, None], e.shape[:2], ctx.stride)
            grad_kernel += correlate(convolved, grad_sums, kernel.shape[-1])
            grad_convolved = _convolve(grad_sums, kernel.flip(-1, -2), 1, e.shape[2:])
            grad_e = grad_convolved[..., -1] + (grad_convolved[..., :-1] * v).sum(dim=-1)
            torch.mul(grad_e, e, out=grad_scores[image])
            torch.sum(grad_convolved[..., :-1].mul_(e[..., None]), dim=2, out=grad_values[image])
        return grad_scores, grad_values, *_grad_of_tables(grad_kernel, bias, scale), None, None


def _exponentials(scores: Tensor) -> Tensor:
    """(B, H, W, q, h), at most 1."""
    return (scores - scores.amax(dim=(1, 2), keepdim=True)).exp_()


def _kernel(bias: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Kernel (n, 1, k, k) of both sums; the softmax does not mind that it is scaled."""
    exponentials = (bias - bias.max()).exp_()
    numerator = (exponentials * scale)[..., None].expand(*bias.shape, dim)
    kernel = torch.cat([numerator, exponentials[..., None]], dim=-1).flatten(1)  # (k*k, n)
    side = round(len(kernel) ** 0.5)
    return kernel.T.reshape(-1, 1, side, side)


def _weighted(e: Tensor, values: Tensor) -> Tensor:
    """One image's ``e v`` and ``e``, from (H, W, q, h) and (H, W, h, d): a map (1, n, H, W)."""
    weighted = e.new_empty(*e.shape, values.shape[-1] + 1)
    torch.mul(e[..., None], values[:, :, None], out=weighted[..., :-1])
    weighted[..., -1] = e
    return weighted.flatten(2).permute(2, 0, 1)[None]


def _convolve(x: Tensor, kernel: Tensor, stride: int, heads: torch.Size) -> Tensor:
    """Depth-wise convolution of one map (1, n, H, W), as (H', W', q, h, d + 1)."""
    y = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=len(kernel))
    return y[0].permute(1, 2, 0).unflatten(-1, (*heads, -1))


def _grad_of_sums(sums: Tensor, grad: Tensor, grid: torch.Size, stride: int) -> Tensor:
    """Gradient of both sums as a map (1, n, H, W), zero where a stride leaves positions out."""
    full = sums.new_zeros(*grid, *sums.shape[2:]) if stride > 1 else torch.empty_like(sums)
    result = full[::stride, ::stride]
    torch.div(grad, sums[..., -1:], out=result[..., :-1])
    result[..., -1] = (result[..., :-1] * sums[..., :-1]).sum(-1).div_(sums[..., -1]).neg_()
    return full.flatten(2).permute(2, 0, 1)[None]


def _grad_of_tables(grad_kernel: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of position bias and attention scale, (k*k, q, h) each."""
    grads = grad_kernel.flatten(1).T.unflatten(1, (*bias.shape[1:], -1))
    exponentials = (bias - bias.max()).exp_()
    grad_scale = grads[..., :-1].sum(-1) * exponentials
    return grad_scale * scale + grads[..., -1] * exponentials, grad_scale

"""Learned-query attention as a ratio of depth-wise convolutions, for CPUs.

With ``e = exp(s - max s)``, the maximum over the image for each query and head, the weighted sum
over a window is a ratio of two sums that slide over the map: of ``e v`` with the kernel
``exp(bias) scale``, and of ``e`` with ``exp(bias)``. Both are depth-wise convolutions, for which
PyTorch has its fastest code. Unlike the window's own maximum, the image's may be so far above a
window's scores that all their exponentials vanish: the spread of the scores is checked first.

Maps are channels-first here: a weight meets the d values of its head without breaking the innermost
axis into pieces of d numbers, and the convolutions are fastest.

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
MAX_PADDING = 5  # positions; oneDNN has no fast convolution for more (it depends on the registers)


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
    if scores.numel() == 0:
        return 'there is nothing to convolve'
    with torch.no_grad():
        spread = (scores.amax((1, 2)) - scores.amin((1, 2))).max()
        if position_bias is not None:
            spread = spread + (position_bias.max() - position_bias.min())
    if not spread.item() <= MAX_SPREAD:  # also where it is NaN
        return f'the scores of an image spread over more than {MAX_SPREAD:g}'
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
    maps = (x.permute(0, 3, 4, 1, 2).contiguous() for x in (scores, values))
    return _RatioOfConvolutions.apply(*maps, bias, scale, stride).permute(0, 3, 4, 1, 2)


class _RatioOfConvolutions(torch.autograd.Function):
    """Maps scores (B, q, h, H, W) and values (B, h, d, H, W) to outputs (B, h, d, H', W').

    Goes image by image, so that what is in work stays small and close; keeps no large map. The
    backward computes the convolutions again. Their gradients are convolutions as well: for the
    input, of the gradient with the flipped kernel; for the kernel, of the input with the gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor, stride: int
    ) -> Tensor:
        kernel = _kernel(bias, scale, values.shape[2])
        grid = (-(-size // stride) for size in scores.shape[3:])
        output = values.new_empty(*values.shape[:3], *grid)
        for image, e in enumerate(_exponentials(scores)):
            sums = _convolve(_weighted(e, values[image]), kernel, stride)
            _sum_over_queries(sums[:, :, :-1], sums[:, :, -1:].reciprocal(), output[image])
        ctx.save_for_backward(scores, values, bias, scale)
        ctx.stride = stride
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients through those of numerator N, g / D, and denominator D, - sum(g N / D) / D."""
        scores, values, bias, scale = ctx.saved_tensors
        kernel = _kernel(bias, scale, values.shape[2])
        grad_scores, grad_values = torch.empty_like(scores), torch.empty_like(values)
        grad_kernel = torch.zeros_like(kernel)
        for image, e in enumerate(_exponentials(scores)):
            weighted, v = _weighted(e, values[image]), values[image]
            sums = _convolve(weighted, kernel, ctx.stride)
            grad_sums = _grad_of_sums(sums, grad[image], e.shape[2:], ctx.stride)
            maps = (x.flatten(0, 2)[None] for x in (weighted, grad_sums))
            grad_kernel += correlate(*maps, kernel.shape[-1])
            grad_weighted = _convolve(grad_sums, kernel.flip(-1, -2), 1)
            products = grad_weighted[:, :, :-1]
            _sum_over_queries(products, e[:, :, None], grad_values[image])
            grad_e = grad_weighted[:, :, -1] + products.mul_(v).sum(dim=2)
            torch.mul(grad_e, e, out=grad_scores[image])
        return grad_scores, grad_values, *_grad_of_tables(grad_kernel, bias, scale), None


def _exponentials(scores: Tensor) -> Tensor:
    """(B, q, h, H, W), at most 1."""
    return (scores - scores.amax(dim=(3, 4), keepdim=True)).exp_()


def _kernel(bias: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Kernel (n, 1, k, k) of both sums; the softmax does not mind that it is scaled."""
    exponentials = (bias - bias.max()).exp_()
    numerator = (exponentials * scale)[..., None].expand(*bias.shape, dim)
    kernel = torch.cat([numerator, exponentials[..., None]], dim=-1).flatten(1)  # (k*k, n)
    side = round(len(kernel) ** 0.5)
    return kernel.T.reshape(-1, 1, side, side)


def _weighted(e: Tensor, values: Tensor) -> Tensor:
    """One image's ``e v`` and ``e``, (q, h, d + 1, H, W), from (q, h, H, W) and (h, d, H, W)."""
    weighted = e.new_empty(*e.shape[:2], values.shape[1] + 1, *e.shape[2:])
    torch.mul(e[:, :, None], values, out=weighted[:, :, :-1])
    weighted[:, :, -1] = e
    return weighted


def _convolve(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Depth-wise convolution of one image's maps (q, h, d + 1, H, W)."""
    maps, padding = x.flatten(0, 2)[None], kernel.shape[-1] // 2
    if padding > MAX_PADDING:
        maps, padding = F.pad(maps, (padding,) * 4), 0
    y = F.conv2d(maps, kernel, None, stride, padding, groups=len(kernel))
    return y[0].unflatten(0, x.shape[:3])


def _sum_over_queries(x: Tensor, factors: Tensor, output: Tensor) -> None:
    """Sums ``x factors`` over the queries, (q, h, d, H, W) and (q, h, 1, H, W), into ``output``."""
    torch.mul(x[0], factors[0], out=output)
    for maps, factor in zip(x[1:], factors[1:], strict=True):
        output.addcmul_(maps, factor)


def _grad_of_sums(sums: Tensor, grad: Tensor, grid: torch.Size, stride: int) -> Tensor:
    """Gradient of both sums, (q, h, d + 1, H, W), zero where a stride leaves positions out."""
    full = sums.new_zeros(*sums.shape[:3], *grid) if stride > 1 else torch.empty_like(sums)
    result, factor = full[..., ::stride, ::stride], sums[:, :, -1:].reciprocal()
    torch.mul(grad, factor, out=result[:, :, :-1])
    products = sums[:, :, :-1].mul_(result[:, :, :-1])
    torch.mul(products.sum(dim=2), factor[:, :, 0], out=result[:, :, -1]).neg_()
    return full


def _grad_of_tables(grad_kernel: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of position bias and attention scale, (k*k, q, h) each."""
    grads = grad_kernel.flatten(1).T.unflatten(1, (*bias.shape[1:], -1))
    exponentials = (bias - bias.max()).exp_()
    grad_scale = grads[..., :-1].sum(-1) * exponentials
    return grad_scale * scale + grads[..., -1] * exponentials, grad_scale

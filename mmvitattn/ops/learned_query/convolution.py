"""Learned-query attention as a ratio of depth-wise convolutions, for CPUs.

With ``e = exp(s - max s)``, where the maximum is over the image for each query and head, the
weighted mean over a window is a ratio of two sliding sums: of ``e v`` with the kernel
``exp(bias) scale``, and of ``e`` with ``exp(bias)``. Both are depth-wise convolutions, for which
PyTorch has its fastest code. The maximum of the image may exceed the scores of a window by so much
that all their exponentials vanish, so the spread of the scores is checked first.

Maps are channels-first here: a weight is then multiplied by the d values of its head without
splitting the innermost axis into pieces of d numbers, and the convolutions are fastest. A matrix
product reads and writes either layout at the same speed, so :func:`project_in` and
:func:`project_out` change it at no cost; a separate transposition takes as long as the product.

Shapes: B batch, H W grid, C channels, h heads, d channels of a head, k window side, q learned
queries, n = q h (d + 1) channels of the convolved maps: ``e v`` and, as the last channel of each
head, ``e``.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..depthwise import correlate
from ..dispatch import as_autocast, chosen, is_compiling, is_exporting, is_traced
from ..linear import linear

if TYPE_CHECKING:
    from . import LearnedQueryInputs

MAX_SPREAD = 60.0  # exp(-60) = 9e-27: products of two such numbers are still normal in float32
BATCH_ELEMENTS = 1 << 20  # of the maps that are convolved at once: 4 MiB, which caches hold
# Positions; oneDNN has no fast convolution for more (it depends on the number of registers). Files
# that are exported run elsewhere.
MAX_PADDING = 5 if torch.backends.cpu.get_cpu_capability() == 'AVX512' else 4


def reason_not_to_run(inputs: 'LearnedQueryInputs') -> str | None:
    """Why the convolutions cannot take this input, or ``None``."""
    scores, bias = inputs.scores, inputs.bias
    if scores.device.type != 'cpu':
        return 'checking the spread of the scores would have to wait for the device'
    if is_traced():
        return 'checking the spread of the scores would break the graph'
    if scores.numel() == 0:
        return 'the input is empty'
    with torch.no_grad():
        fits = spread(scores, bias) <= MAX_SPREAD  # false if it is NaN
    if not fits.item():
        return f'the scores of an image spread over more than {MAX_SPREAD:g}'
    return None


def spread(scores: Tensor, bias: Tensor) -> Tensor:
    """How far the scores and biases of one image lie apart at most; a number."""
    return (scores.amax((1, 2)) - scores.amin((1, 2))).max() + (bias.max() - bias.min())


def run(inputs: 'LearnedQueryInputs') -> Tensor:
    """See :func:`mmvitattn.ops.learned_query_attention`."""
    scores, values, bias, scale, _, stride = inputs
    maps = _channels_first(scores, values)
    return _RatioOfConvolutions.apply(*maps, bias, scale, stride).permute(0, 3, 4, 1, 2)


def gradients(grad: Tensor, inputs: 'LearnedQueryInputs') -> list[Tensor]:
    """Gradients of scores, values, bias and scale, for the gradient of the output."""
    scores, values, grad = _channels_first(inputs.scores, inputs.values, grad)
    grad_scores, grad_values, *grads = _gradients(
        scores, values, grad, inputs.bias, inputs.scale, inputs.stride
    )
    return [x.permute(0, 3, 4, 1, 2) for x in (grad_scores, grad_values)] + grads


def _channels_first(scores: Tensor, *others: Tensor) -> list[Tensor]:
    """Maps in the scores' precision: PyTorch's depth-wise convolutions in bfloat16 are slower."""
    return [x.permute(0, 3, 4, 1, 2).to(scores.dtype).contiguous() for x in (scores, *others)]


class _RatioOfConvolutions(torch.autograd.Function):
    """Maps scores (B, q, h, H, W) and values (B, h, d, H, W) to outputs (B, h, d, H', W').

    Processes one or a few images at a time, so that intermediate maps stay in the cache, and saves
    only its inputs. The backward pass recomputes the convolutions. Their gradients are convolutions
    as well: for the input, of the gradient with the flipped kernel; for the kernel, of the input
    with the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor, stride: int
    ) -> Tensor:
        kernel = make_kernel(bias, scale, values.shape[2])
        grid = (-(-size // stride) for size in scores.shape[3:])
        output = values.new_empty(*values.shape[:3], *grid)
        for e, v, y in _by_images(kernel, exponentiate(scores), values, output):
            sums = convolve(_weighted(e, v), kernel, stride)
            _sum_over_queries(sums[:, :, :, :-1], sums[:, :, :, -1:].reciprocal(), y)
        ctx.save_for_backward(scores, values, bias, scale)
        ctx.stride = stride
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, values, bias, scale = ctx.saved_tensors
        return *_gradients(scores, values, grad, bias, scale, ctx.stride), None


def _gradients(
    scores: Tensor, values: Tensor, grad: Tensor, bias: Tensor, scale: Tensor, stride: int
) -> tuple[Tensor, ...]:
    """For output N / D and its gradient g: dN = g / D and dD = -sum(g N / D) / D."""
    kernel = make_kernel(bias, scale, values.shape[2])
    grad_scores, grad_values = torch.empty_like(scores), torch.empty_like(values)
    grad_kernel, side = torch.zeros_like(kernel), kernel.shape[-1]
    maps = (exponentiate(scores), values, grad, grad_scores, grad_values)
    for e, v, g, grad_s, grad_v in _by_images(kernel, *maps):
        weighted = _weighted(e, v)
        grad_sums = _grad_of_sums(convolve(weighted, kernel, stride), g, e, stride)
        grad_kernel += correlate(weighted.flatten(1, 3), grad_sums.flatten(1, 3), side)
        grad_weighted = convolve(grad_sums, kernel.flip(-1, -2), 1)
        products = grad_weighted[:, :, :, :-1]
        _sum_over_queries(products, e[:, :, :, None], grad_v)
        grad_e = grad_weighted[:, :, :, -1] + products.mul_(v[:, None]).sum(dim=3)
        torch.mul(grad_e, e, out=grad_s)
    return grad_scores, grad_values, *_grad_of_tables(grad_kernel, bias, scale)


def _by_images(kernel: Tensor, e: Tensor, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits the maps into batches of as many images as are processed at once."""
    images = max(1, BATCH_ELEMENTS // (len(kernel) * e.shape[3] * e.shape[4]))
    return zip(*(x.split(images) for x in (e, *maps)), strict=True)


def exponentiate(scores: Tensor) -> Tensor:
    """(B, q, h, H, W), at most 1."""
    return (scores - scores.amax(dim=(3, 4), keepdim=True)).exp_()


def make_kernel(bias: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Kernel (n, 1, k, k) of both sums, up to a factor that cancels in their ratio."""
    exponentials = (bias - bias.max()).exp_()
    numerator = (exponentials * scale)[..., None].expand(*bias.shape, dim)
    kernel = torch.cat([numerator, exponentials[..., None]], dim=-1).flatten(1)  # (k*k, n)
    side = round(len(kernel) ** 0.5)
    return kernel.T.reshape(-1, 1, side, side)


def _weighted(e: Tensor, values: Tensor) -> Tensor:
    """``e v`` and ``e``, (B, q, h, d + 1, H, W), from (B, q, h, H, W) and (B, h, d, H, W)."""
    weighted = e.new_empty(*e.shape[:3], values.shape[2] + 1, *e.shape[3:])
    torch.mul(e[:, :, :, None], values[:, None], out=weighted[:, :, :, :-1])
    weighted[:, :, :, -1] = e
    return weighted


def convolve(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Depth-wise convolution of maps (B, q, h, d + 1, H, W)."""
    maps, padding = x.flatten(1, 3), kernel.shape[-1] // 2
    if padding > MAX_PADDING and not is_exporting():
        maps, padding = F.pad(maps, (padding,) * 4), 0
    y = F.conv2d(maps, kernel, None, stride, padding, groups=len(kernel))
    return y.unflatten(1, x.shape[1:4])


def _sum_over_queries(x: Tensor, factors: Tensor, output: Tensor) -> None:
    """Sums ``x factors`` over the queries, (B, q, h, d, H, W) and (B, q, h, 1, H, W)."""
    torch.mul(x[:, 0], factors[:, 0], out=output)
    for query in range(1, x.shape[1]):
        output.addcmul_(x[:, query], factors[:, query])


def _grad_of_sums(sums: Tensor, grad: Tensor, e: Tensor, stride: int) -> Tensor:
    """Gradient of both sums, (B, q, h, d + 1, H, W), zero at positions that the stride skips."""
    shape = (*sums.shape[:4], *e.shape[3:])
    full = sums.new_zeros(shape) if stride > 1 else torch.empty_like(sums)
    result, factor = full[..., ::stride, ::stride], sums[:, :, :, -1:].reciprocal()
    torch.mul(grad[:, None], factor, out=result[:, :, :, :-1])
    products = sums[:, :, :, :-1].mul_(result[:, :, :, :-1])
    torch.mul(products.sum(dim=3), factor[:, :, :, 0], out=result[:, :, :, -1]).neg_()
    return full


def _grad_of_tables(grad_kernel: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of position bias and attention scale, (k*k, q, h) each."""
    grads = grad_kernel.flatten(1).T.unflatten(1, (*bias.shape[1:], -1))
    exponentials = (bias - bias.max()).exp_()
    grad_scale = grads[..., :-1].sum(-1) * exponentials
    return grad_scale * scale + grads[..., -1] * exponentials, grad_scale


def project_in(x: Tensor, weight: Tensor) -> Tensor:
    """Linear map whose output is channels-first in memory on CPUs.

    Args:
        x: (B, H, W, C), contiguous.
        weight: (C', C).

    Returns:
        (B, H, W, C').
    """
    operands = _operands(x, weight)
    if operands is None:
        return F.linear(x, weight)
    x, weight = operands
    project = _product if is_compiling() else _Project.apply
    maps = project(x.flatten(1, 2), weight, True)
    return maps.unflatten(2, x.shape[1:3]).permute(0, 2, 3, 1)


def project_out(x: Tensor, weight: Tensor) -> Tensor:
    """Linear map back to a contiguous output, of an input that is channels-first in memory on CPUs.

    Args:
        x: (B, H, W, C).
        weight: (C', C).

    Returns:
        (B, H, W, C'), contiguous.
    """
    operands = _operands(x, weight)
    if operands is None:
        return F.linear(x, weight)
    x, weight = operands
    project = _product if is_compiling() else _Project.apply
    y = project(x.permute(0, 3, 1, 2).flatten(2), weight, False)
    return y.unflatten(1, x.shape[1:3])


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The operands, as autocast would convert them, or ``None`` to leave the product to PyTorch."""
    if is_exporting() or x.device.type != 'cpu':
        return None
    x, weight = as_autocast(x, weight)
    return (x, weight) if x.dtype == weight.dtype else None


class _Project(torch.autograd.Function):
    """Linear map from (B, N, C) to (B, C', N) if ``inward``, else from (B, C, N) to (B, N, C')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, inward: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.inward = inward
        return _product(x, weight, inward)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (grad_x, grad_weight, _) = ctx.saved_tensors, ctx.needs_input_grad
        a, b = (grad, x) if ctx.inward else (grad.mT, x.mT)
        return (
            _product(grad, weight.T, not ctx.inward) if grad_x else None,
            (a @ b).sum(0) if grad_weight else None,
            None,
        )


def _product(x: Tensor, weight: Tensor, inward: bool) -> Tensor:
    if inward:
        return weight.expand(x.shape[0], -1, -1) @ x.mT
    rows = x.mT
    # Worth a transposition only as a convolution; the choice sees sizes and type, not values.
    if x.is_contiguous() and chosen('linear', x.view(rows.shape), weight) == 'convolution':
        return linear(rows.contiguous(), weight)
    return rows @ weight.T.expand(x.shape[0], -1, -1)

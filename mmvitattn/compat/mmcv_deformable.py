"""Replacements of mmcv's compiled deformable attention and convolutions, for CPU and CUDA.

Names, arguments and in-place outputs are those of ``mmcv._ext``. Attention is computed with
``grid_sample``, and its gradients by autograd; convolutions by torchvision's operators.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

__all__ = ['OPS']


def _sample_level(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the points of one feature map that the queries sample.

    Args:
        value: (B, H, W, heads, C).
        locations: (B, queries, heads, points, 2), x and y as fractions of the map.
        weights: (B, queries, heads, points).

    Returns:
        (B, queries, heads, C).
    """
    maps = value.permute(0, 3, 4, 1, 2).flatten(0, 1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, grid, align_corners=False)  # (B * heads, C, queries, points)
    samples = samples * weights.transpose(1, 2).flatten(0, 1)[:, None]
    return samples.sum(dim=3).unflatten(0, (len(value), -1)).permute(0, 3, 1, 2)


def _levels(
    value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Arguments of :func:`_sample_level` for each feature map, as views."""
    sizes = shapes.tolist()
    maps = value.split([height * width for height, width in sizes], dim=1)
    for i, (part, size) in enumerate(zip(maps, sizes, strict=True)):
        yield part.unflatten(1, size), locations[:, :, :, i], weights[:, :, :, i]


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention ("Deformable DETR", equation 3).

    Feature maps are sampled one after the other: the samples of one level are in memory, not those
    of all levels.

    Args:
        value: (B, positions of all levels, heads, C).
        spatial_shapes: (levels, 2), height and width of each level.
        level_start_index: Unused: it follows from the shapes.
        sampling_locations: (B, queries, heads, levels, points, 2), x and y as fractions.
        attention_weights: (B, queries, heads, levels, points).
        im2col_step: Unused.

    Returns:
        (B, queries, heads * C).
    """
    queries = sampling_locations.shape[1]
    output = value.new_zeros(len(value), queries, *value.shape[2:])
    for level in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        output += _sample_level(*level)
    return output.flatten(2)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes the gradients into ``grad_value``, ``grad_sampling_loc`` and ``grad_attn_weight``.

    The other arguments are those of :func:`ms_deform_attn_forward`; ``grad_output`` is
    (B, queries, heads * C).
    """
    inputs = _levels(value, spatial_shapes, sampling_locations, attention_weights)
    outputs = _levels(grad_value, spatial_shapes, grad_sampling_loc, grad_attn_weight)
    grad_output = grad_output.unflatten(2, value.shape[2:])
    for level, grads in zip(inputs, outputs, strict=True):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in level]
            sampled = _sample_level(*leaves)
        for grad, part in zip(
            grads, torch.autograd.grad(sampled, leaves, grad_output), strict=True
        ):
            grad.copy_(part)


def _convolution(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    settings: tuple[int, ...],
    grad_output: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """torchvision's deformable convolution, or with ``grad_output`` its gradients.

    Args:
        input: (B, C, H, W).
        weight: (C', C / group, kernel height, kernel width).
        offset: (B, 2 * deformable groups * kernel positions, H', W'), y before x, in pixels.
        mask: (B, deformable groups * kernel positions, H', W') or ``None``.
        bias: (C',) or ``None``.
        settings: Strides, paddings, dilations, each of y before x, groups, deformable groups.
        grad_output: (B, C', H', W').

    Returns:
        The output, or the gradients of input, weight, offset, mask and bias.
    """
    use_mask = mask is not None
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    tensors = (input, weight, offset, mask, bias)
    if grad_output is None:
        return (torch.ops.torchvision.deform_conv2d(*tensors, *settings, use_mask),)
    return torch.ops.torchvision._deform_conv2d_backward(grad_output, *tensors, *settings, use_mask)


def _settings(options: dict[str, int]) -> tuple[int, ...]:
    """The settings in torchvision's order, from mmcv's two vocabularies."""
    names = (
        ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW')
        if 'dH' in options
        else ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    )
    return tuple(options[name] for name in (*names, 'group', 'deformable_group'))


@torch.no_grad()
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **options: int,
) -> None:
    """Deformable convolution ("Deformable Convolutional Networks", equation 2) into ``output``.

    Args:
        input: (B, C, H, W).
        weight: (C', C / group, kH, kW).
        offset: (B, 2 * deformable_group * kH * kW, H', W'), y before x, in pixels.
        output: (B, C', H', W'), overwritten.
        columns: Unused, like ``ones``.
        ones: Unused.
        options: Strides, paddings, dilations and groups, by mmcv's names.
    """
    output.copy_(_convolution(input, weight, offset, None, None, _settings(options))[0])


@torch.no_grad()
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: int,
) -> None:
    """Writes the gradients into ``grad_input`` and ``grad_offset``.

    The other arguments are those of :func:`deform_conv_forward`.
    """
    settings = _settings(options)
    grads = _convolution(input, weight, offset, None, None, settings, grad_output)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


@torch.no_grad()
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **options: int,
) -> None:
    """Adds ``scale`` times the gradient to ``grad_weight``.

    The other arguments are those of :func:`deform_conv_forward`.
    """
    settings = _settings(options)
    # The values of the weight do not matter here, only its shape.
    grads = _convolution(input, grad_weight, offset, None, None, settings, grad_output)
    grad_weight.add_(grads[1], alpha=scale)


@torch.no_grad()
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Modulated deformable convolution ("Deformable ConvNets v2", equation 1) into ``output``.

    Args:
        input: (B, C, H, W).
        weight: (C', C / group, kernel_h, kernel_w).
        bias: (C',), or empty without bias.
        ones: Unused, like ``columns``.
        offset: (B, 2 * deformable_group * kernel_h * kernel_w, H', W'), y before x, in pixels.
        mask: (B, deformable_group * kernel_h * kernel_w, H', W').
        output: (B, C', H', W'), overwritten.
        columns: Unused.
        with_bias: Whether there is a bias.
        options: Strides, paddings, dilations and groups, by mmcv's names.
    """
    own_bias = bias if with_bias else None
    output.copy_(_convolution(input, weight, offset, mask, own_bias, _settings(options))[0])


@torch.no_grad()
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Writes the gradients of the five inputs into the tensors of their names.

    The other arguments are those of :func:`modulated_deform_conv_forward`.
    """
    own_bias, settings = (bias if with_bias else None), _settings(options)
    grads = _convolution(input, weight, offset, mask, own_bias, settings, grad_output)
    outputs = (grad_input, grad_weight, grad_offset, grad_mask)
    for output, grad in zip(outputs, grads[:4], strict=True):
        output.copy_(grad)
    if with_bias:
        grad_bias.copy_(grads[4])


OPS = {
    op.__name__: op
    for op in (
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
    )
}

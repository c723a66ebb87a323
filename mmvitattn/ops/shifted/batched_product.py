"""Shifted patch embeddings as one batched matrix product over the patches that each shift reads."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import is_exporting
from .shifts import Shifts

if TYPE_CHECKING:
    from . import PatchEmbeddingInputs


def reason_not_to_run(inputs: 'PatchEmbeddingInputs') -> str | None:
    """Why the windows cannot be batched, or ``None``."""
    return 'tracing would hard-code the windows of this image size' if is_exporting() else None


def run(inputs: 'PatchEmbeddingInputs') -> Tensor:
    """See :func:`mmvitattn.ops.shifted_patch_embedding`."""
    image, weight, bias, shifts, stride, padding, border = inputs
    kernel_size = weight.shape[-1]
    windows = [
        variant.unfold(1, kernel_size, stride).unfold(2, kernel_size, stride)
        for variant in _shifted_images(image, shifts, padding, border)
    ]  # views (B, H', W', C, K, K)
    # The only copy. The K pixels of a kernel's row, of C channels each, are contiguous in it.
    patches = torch.stack([window.permute(0, 1, 2, 4, 5, 3) for window in windows])
    grid = patches.shape[1:4]
    patches = patches.flatten(4).flatten(1, 3)  # (T, N, K * K * C)
    kernels = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # (T, K * K * C, E)
    if bias is None:
        embeddings = torch.bmm(patches, kernels)
    else:
        embeddings = torch.baddbmm(bias[:, None], patches, kernels)
    return embeddings.unflatten(1, grid)


def _shifted_images(image: Tensor, shifts: Shifts, padding: int, border: str) -> list[Tensor]:
    """The T shifted images with their zero padding, (B, H + 2P, W + 2P, C), views where P = 0.

    Each is a window of one canvas: the image continued circularly as far as the shifts reach.
    """
    height, width = image.shape[1:3]
    # No zip(strict=True): torch.compile of torch 2.1 cannot trace it.
    down, right = [y for y, _ in shifts], [x for _, x in shifts]
    canvas = _continue_circularly(image.contiguous(), 1, max(0, *down), max(0, -min(down)))
    canvas = _continue_circularly(canvas, 2, max(0, *right), max(0, -min(right)))
    variants = []
    for y, x in shifts:
        top, left = max(0, *down) - y, max(0, *right) - x
        # The extended image, as far as the output, which keeps its size, reads it.
        rows = min(height + y, height + padding) if border == 'extend' else height
        columns = min(width + x, width + padding) if border == 'extend' else width
        variant = canvas[:, top : top + rows, left : left + columns]
        if padding:
            bottom, right_side = height + padding - rows, width + padding - columns
            variant = F.pad(variant, (0, 0, padding, right_side, padding, bottom))
        variants.append(variant)
    return variants


def _continue_circularly(image: Tensor, axis: int, before: int, after: int) -> Tensor:
    if not before and not after:
        return image
    size = image.shape[axis]  # which a shift may exceed
    first = image.narrow(axis, size - before % size, before % size)
    last = image.narrow(axis, 0, after % size)
    copies = before // size + 1 + after // size
    return torch.cat([first, *[image] * copies, last], dim=axis)

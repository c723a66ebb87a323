"""Patch embedding of an image of any size."""

import torch.nn.functional as F
from torch import Tensor

from ..ops.dispatch import is_traced
from .embed import ConvEmbed
from .init import trunc_normal_


def remainder(size: int, multiple: int) -> int:
    """What is missing from ``size`` to the next multiple.

    ``torch.export`` cannot simplify the shorter ``-size % multiple`` for a dynamic size.
    """
    return (size + multiple - 1) // multiple * multiple - size


def pad_to_stride(x: Tensor, stride: int) -> Tensor:
    """Pads (B, H, W, C) with zeros on the right and the bottom to a multiple of the stride."""
    bottom, right = remainder(x.shape[1], stride), remainder(x.shape[2], stride)
    if is_traced() or bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


def patch_grid(
    height: int, width: int, kernel_size: int, stride: int, padding: int
) -> tuple[int, int]:
    """Rows and columns of patches, for an image that is padded as by :func:`pad_to_stride`.

    All arguments are in pixels; ``padding`` is added on each side.
    """
    border = 2 * padding - kernel_size
    rows, columns = ((n + remainder(n, stride) + border) // stride + 1 for n in (height, width))
    return rows, columns


class PatchEmbed(ConvEmbed):
    """Embeds the patches of an image by one convolution.

    The image is padded with zeros on the right and the bottom to a multiple of the stride.

    Args:
        in_channels: channels of the image.
        channels: channels of the embedding.
        kernel_size: side of the kernel, in pixels.
        stride: stride, in pixels.
        padding: additional zeros on each side of the image, in pixels.

    Example:
        >>> PatchEmbed(3, 64, kernel_size=4, stride=4)(torch.rand(8, 225, 223, 3)).shape
        torch.Size([8, 57, 56, 64])
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, stride: int, padding: int = 0
    ) -> None:
        super().__init__(in_channels, channels, kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal (std 0.02) kernel, zero bias."""
        trunc_normal_(self.conv)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``height`` x ``width`` pixels."""
        return patch_grid(height, width, self.kernel_size, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, H', W', C); see :meth:`grid_size`."""
        return super().forward(pad_to_stride(x, self.stride))

"""Shifted patch embedding, and local attention over the shifted variants (SAG, section 3)."""

import torch
from torch import Tensor, nn

from ..ops import local_shift_attention, shift_weights, shifted_patch_embedding
from ..ops.shifted.shifts import Shifts, check_shifts, translate
from .global_attention import AttentionProjections
from .patch_embed import PatchEmbed, pad_to_stride, patch_grid

# Pixels (down, right) in the order of the official release.
IMAGENET_SHIFTS = (
    *((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)),
    *((1, 1), (2, 2), (3, 3)),
)
CIFAR_SHIFTS = (
    *((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (2, 0), (0, 2), (-2, 0), (0, -2)),
    *((1, 1), (1, 2), (1, -1), (-1, 1), (-1, 2), (-1, -1), (2, 1), (2, 2), (2, -1)),
)


class ShiftedPatchEmbed(nn.Module):
    """Embeds T shifted copies of an image, each by its own convolution.

    Before the shifts, the image is padded with zeros on the right and the bottom to a multiple of
    the stride.

    Args:
        in_channels: channels of the image.
        channels: channels of each embedding.
        kernel_size: side of the kernels, in pixels.
        stride: stride, in pixels.
        padding: zeros on each side of the shifted image, in pixels.
        shifts: pairs of pixels (down, right).
        border: 'extend' adds rows and columns from the bottom and the right of the image at its
            top and left (shifts >= 0); 'roll' shifts circularly.

    Raises:
        ValueError: for an unknown border or shifts that it does not support.

    Example:
        >>> embed = ShiftedPatchEmbed(3, 64, kernel_size=4, stride=4)
        >>> embed(torch.rand(8, 224, 224, 3)).shape
        torch.Size([10, 8, 56, 56, 64])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        shifts: Shifts = IMAGENET_SHIFTS,
        border: str = 'extend',
    ) -> None:
        super().__init__()
        check_shifts('ShiftedPatchEmbed', shifts, border)
        self.shifts = tuple((down, right) for down, right in shifts)
        self.stride, self.padding, self.border = stride, padding, border
        shape = (len(self.shifts), channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[:2]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal (std 0.02) kernels, zero bias."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``height`` x ``width`` pixels."""
        return patch_grid(height, width, self.weight.shape[-1], self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (T, B, H', W', C); see :meth:`grid_size`."""
        x = pad_to_stride(x, self.stride)
        return shifted_patch_embedding(
            x, self.weight, self.bias, self.shifts, self.stride, self.padding, self.border
        )

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        variants, channels, in_channels, kernel_size, _ = self.weight.shape
        return (
            f'{in_channels}, {channels}, variants={variants}, kernel_size={kernel_size}, '
            f'stride={self.stride}, padding={self.padding}, border={self.border!r}'
        )


class TranslatedPatchEmbed(PatchEmbed):
    """Embeds T translations of an image, all by the same convolution (SAG, section 4.1, (i)).

    Translated images are filled by reflection, then padded as in
    :class:`~mmvitattn.layers.patch_embed.PatchEmbed`, whose other arguments it takes.

    Args:
        shifts: pairs of pixels (down, right), negative ones (up, left).

    Raises:
        ValueError: for shifts that are not pairs.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        shifts: Shifts = IMAGENET_SHIFTS,
    ) -> None:
        super().__init__(in_channels, channels, kernel_size, stride, padding)
        check_shifts('TranslatedPatchEmbed', shifts, 'roll')
        self.shifts = tuple((down, right) for down, right in shifts)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (T, B, H', W', C); see :meth:`grid_size`.

        Raises:
            ValueError: unless the image is larger than the largest shift on each side.
        """
        y = super().forward(translate(x, self.shifts).flatten(0, 1))
        # Tracing would hard-code the sizes of unflatten.
        return y.view(len(self.shifts), -1, *y.shape[1:])

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'variants={len(self.shifts)}'


class LocalShiftAttention(AttentionProjections):
    """Attention of each patch to its own shifted variants, with the unshifted one as the query.

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        shared_kv: whether all heads share one key and one value of C / h channels (multi-query).

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``.

    Example:
        >>> attention = LocalShiftAttention(64, num_heads=2)
        >>> attention(torch.rand(10, 8, 56, 56, 64)).shape
        torch.Size([8, 56, 56, 64])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps variants (T, B, H, W, C), the unshifted one first, to (B, H, W, C)."""
        key_weight, value_weight = self.key_value.weight.chunk(2)
        key_bias, value_bias = self.key_value.bias.chunk(2)
        y = local_shift_attention(
            x,
            query=(self.query.weight, self.query.bias),
            key=(key_weight, key_bias),
            value=(value_weight, value_bias),
            num_heads=self.num_heads,
        )
        return self.out(y)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Attention weight of each variant of a patch, for an input (T, B, H, W, C).

        Returns:
            Weights that sum to one over the variants, (T, B, H, W, h).
        """
        query = (self.query.weight, self.query.bias)
        key = (self.key_value.weight.chunk(2)[0], self.key_value.bias.chunk(2)[0])
        return shift_weights(x, query, key, self.num_heads)

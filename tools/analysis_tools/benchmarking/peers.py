"""Attention layers of other papers, on maps (B, H, W, C), and wrappers that force our own ops."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmvitattn.layers import LocalShiftAttention, ShiftedPatchEmbed
from mmvitattn.layers.global_attention import AttentionProjections
from mmvitattn.layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS
from mmvitattn.ops import force

from .cases import Unavailable

SWIN_WINDOW = 7
HALO_BLOCK = 8


class Forced(nn.Module):
    """A module with implementations of our ops forced.

    Args:
        module: the module.
        setting: as of :func:`mmvitattn.ops.force`.

    Raises:
        Unavailable: if there is no such implementation.
    """

    def __init__(self, module: nn.Module, setting: str) -> None:
        super().__init__()
        self.module, self.setting = module, setting
        try:
            with force(setting):
                pass
        except ValueError:
            raise Unavailable(f'there is no implementation {setting}') from None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the module."""
        with force(self.setting):
            return self.module(*inputs)


class DotProductAttention(AttentionProjections):
    """Softmax attention between all positions, as its equation says: the N x N weights exist."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        heads, dim = self.num_heads, self.channels // self.num_heads
        tokens = x.flatten(1, 2)
        query, key, value = (
            y.unflatten(-1, (heads, dim)).transpose(1, 2)
            for y in (self.query(tokens), *self.key_value(tokens).chunk(2, dim=-1))
        )
        weights = (query * dim**-0.5 @ key.mT).softmax(dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


class SwinAttention(nn.Module):
    """Attention of timm's Swin block: 7 x 7 windows, relative bias, by PyTorch's SDPA.

    Args:
        channels: channels C.
        num_heads: heads.
        grid: height and width of the map, for which the masks are computed once.
        shifted: whether the windows are shifted, as in every second block.
    """

    def __init__(self, channels: int, num_heads: int, grid: tuple[int, int], shifted: bool) -> None:
        from timm.models.swin_transformer import SwinTransformerBlock

        super().__init__()
        shift = SWIN_WINDOW // 2 if shifted else 0
        block = SwinTransformerBlock(
            channels, grid, num_heads, window_size=SWIN_WINDOW, shift_size=shift
        )
        block.attn.fused_attn = True  # SDPA, which timm leaves off here
        block.mlp = block.norm1 = block.norm2 = nn.Identity()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        return self.block._attn(x)


class HaloAttention(nn.Module):
    """timm's HaloNet attention: blocks of 8 x 8 attend to themselves and a halo of k // 2.

    Args:
        channels: channels C.
        num_heads: heads.
        kernel_size: side k of the window that every position sees at least.
    """

    def __init__(self, channels: int, num_heads: int, kernel_size: int) -> None:
        from timm.layers.halo_attn import HaloAttn

        super().__init__()
        self.attention = HaloAttn(
            channels, num_heads=num_heads, block_size=HALO_BLOCK, halo_size=kernel_size // 2
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape; other sizes than blocks' are padded."""
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 0, -width % HALO_BLOCK, 0, -height % HALO_BLOCK))
        y = self.attention(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y[:, :height, :width]


# Embedding and first block of each SAG architecture: layer options, then heads and sharing.
_IMAGENET = dict(in_channels=3, shifts=IMAGENET_SHIFTS, border='extend')
SAG_STEMS = {
    'small': (dict(channels=64, kernel_size=4, stride=4, padding=0, **_IMAGENET), (2, False)),
    'tiny': (dict(channels=192, kernel_size=9, stride=7, padding=1, **_IMAGENET), (4, False)),
    'CIFAR': (
        dict(
            in_channels=3,
            channels=192,
            kernel_size=3,
            stride=1,
            padding=1,
            shifts=CIFAR_SHIFTS,
            border='roll',
        ),
        (3, True),
    ),
}


class EmbedAndAttend(nn.Module):
    """SAG's shifted patch embedding and the local attention over its variants.

    Args:
        arch: 'small', 'tiny' or 'CIFAR'.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        options, (heads, shared_kv) = SAG_STEMS[arch]
        self.embed = ShiftedPatchEmbed(**options)
        self.attention = LocalShiftAttention(options['channels'], heads, shared_kv)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, H', W', C)."""
        return self.attention(self.embed(images.permute(0, 2, 3, 1)))

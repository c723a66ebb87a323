"""SAG's block, stage and down-sampling, and the choices of its first block.

The choices are those of the paper's ablations (section 4.1).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..layers import (
    FFN,
    ConvEmbed,
    LocalShiftAttention,
    PositionTable,
    ShiftedPatchEmbed,
    WindowAttention,
)
from ..layers.conv_projection import ConvProjectionAttention, ConvTokenEmbed
from ..layers.init import trunc_normal_
from ..layers.patch_embed import PatchEmbed
from ..layers.shifted import TranslatedPatchEmbed
from .options import choose

NORM_EPS = 1e-6
FFN_RATIO = 4
SWIN_WINDOW = 7


class SAGBlock(nn.Module):
    """Pre-norm block: attention, then an FFN; the norms belong to the stage.

    Local attention reads all shifted variants; the unshifted one alone has the residual connection
    and goes on.

    Args:
        attention: attention on a map, or local attention over variants.
        channels: channels C.
        drop_path: probability with which a branch is dropped for a sample.
    """

    def __init__(self, attention: nn.Module, channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = FFN(channels, FFN_RATIO * channels)
        self.drop_path = StochasticDepth(drop_path, mode='row')

    def forward(self, x: Tensor, norm1: nn.Module, norm2: nn.Module) -> Tensor:
        """Maps (B, H, W, C), or (T, B, H, W, C) with local attention, to (B, H, W, C)."""
        y = self.attention(norm1(x))
        x = (x[0] if x.dim() == 5 else x) + self.drop_path(y)
        return x + self.drop_path(self.ffn(norm2(x)))


class SAGStage(nn.Module):
    """Position table, one pair of norms that all blocks share, blocks.

    Args:
        blocks: the blocks.
        position: positions of the stage's input.
        channels: channels C.
    """

    def __init__(self, blocks: Sequence[SAGBlock], position: PositionTable, channels: int) -> None:
        super().__init__()
        self.position = position
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.blocks = nn.ModuleList(blocks)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.blocks)


class SAGDownsample(nn.Module):
    """Convolution, LayerNorm, max-pooling: halves the map.

    Args:
        in_channels: channels C of the input.
        channels: channels C' of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.embed = ConvEmbed(in_channels, channels, kernel_size=3, stride=1, padding=1)
        trunc_normal_(self.embed.conv)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), C')."""
        y = self.norm(self.embed(x)).permute(0, 3, 1, 2)
        return F.max_pool2d(y, kernel_size=3, stride=2, padding=1).permute(0, 2, 3, 1).contiguous()


def swin_attention(channels: int, num_heads: int, shared_kv: bool) -> WindowAttention:
    """Swin's attention, in windows of its size, with its biases and its start values.

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        shared_kv: ignored: in Swin each head has keys and values of its own.
    """
    attention = WindowAttention(channels, num_heads, SWIN_WINDOW, bias=True)
    for linear in (attention.qkv, attention.out):
        trunc_normal_(linear)
    nn.init.trunc_normal_(attention.position_bias, std=0.02)
    return attention


class Local(NamedTuple):
    """How the first block sees the neighbourhood of a patch.

    Args:
        embed: patch embedding, of the image's and its own channels and ``settings``.
        settings: what it takes of the arch; one that takes shifts gives a variant for each.
        attention: the first block's, of channels, heads and ``shared_kv``; ``None`` for the global
            one of the other blocks.
    """

    embed: Callable[..., nn.Module]
    settings: tuple[str, ...]
    attention: Callable[[int, int, bool], nn.Module] | None

    @property
    def has_variants(self) -> bool:
        """Whether the patch embedding gives shifted variants."""
        return 'shifts' in self.settings

    def build_embed(self, in_channels: int, channels: int, arch: Mapping[str, Any]) -> nn.Module:
        """The patch embedding of an arch."""
        return self.embed(in_channels, channels, **{key: arch[key] for key in self.settings})


PATCH = ('kernel_size', 'stride', 'padding')
LOCALS: dict[str | None, Local] = {
    'shift': Local(ShiftedPatchEmbed, (*PATCH, 'shifts', 'border'), LocalShiftAttention),
    'translation': Local(TranslatedPatchEmbed, (*PATCH, 'shifts'), LocalShiftAttention),
    'window': Local(PatchEmbed, PATCH, swin_attention),
    'convolution': Local(ConvTokenEmbed, ('stride',), ConvProjectionAttention),
    None: Local(PatchEmbed, PATCH, None),
}
POSITIONS = ('per_variant', 'shared')


def check_options(
    local: str | None, position: str, num_shifts: int | None, most_shifts: int
) -> None:
    """Checks the options of the ablations.

    Args:
        local: a key of ``LOCALS``.
        position: one of ``POSITIONS``.
        num_shifts: number of shifts that are taken; ``None`` for all.
        most_shifts: number of shifts that the arch has.

    Raises:
        ValueError: for a value that does not exist, or a number of shifts where there are none.
    """
    choose('SAGViT', 'local', local, LOCALS)
    choose('SAGViT', 'position', position, dict.fromkeys(POSITIONS))
    if num_shifts is None:
        return
    if not LOCALS[local].has_variants:
        raise ValueError(
            f'SAGViT: num_shifts={num_shifts}, but there are no shifts with local={local!r}; '
            'leave num_shifts out'
        )
    if num_shifts not in range(1, most_shifts + 1):
        raise ValueError(
            f'SAGViT: num_shifts={num_shifts} must lie in [1, {most_shifts}]: the arch has '
            f'{most_shifts} shifts'
        )

"""SAG's block, stage and down-sampling, and the options of its ablations (paper, section 4.1)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..layers import (
    FFN,
    ConvEmbed,
    LocalShiftAttention,
    PositionTable,
    ShiftedPatchEmbed,
    WindowAttention,
)
from ..layers.conv_projection import ConvProjectionAttention, ConvTokenEmbed
from ..layers.drop_path import DropPath
from ..layers.init import trunc_normal_
from ..layers.patch_embed import PatchEmbed
from ..layers.shifted import TranslatedPatchEmbed

NORM_EPS = 1e-6
FFN_RATIO = 4
SWIN_WINDOW = 7


class SAGBlock(nn.Module):
    """Pre-norm block: attention, then an FFN; the norms belong to the stage.

    The input of local attention are all shifted variants; the residual connection adds its output
    to the unshifted one.

    Args:
        attention: attention on a map, or local attention over variants.
        channels: channels C.
        drop_path: probability with which a branch is dropped for a sample.
    """

    def __init__(self, attention: nn.Module, channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = FFN(channels, FFN_RATIO * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, norm1: nn.Module, norm2: nn.Module) -> Tensor:
        """Maps (B, H, W, C), or (T, B, H, W, C) with local attention, to (B, H, W, C)."""
        y = self.attention(norm1(x))
        x = (x[0] if x.dim() == 5 else x) + self.drop_path(y)
        return x + self.drop_path(self.ffn(norm2(x)))


class SAGStage(nn.Module):
    """Position table, one pair of norms shared by all blocks, blocks.

    Args:
        blocks: the blocks.
        position: position table, added to the stage's input.
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
    """Window attention with Swin's window size, biases and start values.

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        shared_kv: ignored: in Swin each head has its own keys and values.
    """
    attention = WindowAttention(channels, num_heads, SWIN_WINDOW, bias=True)
    for linear in (attention.qkv, attention.out):
        trunc_normal_(linear)
    assert attention.position_bias is not None
    nn.init.trunc_normal_(attention.position_bias, std=0.02)
    return attention


class Local(NamedTuple):
    """Patch embedding and first block for a value of the option ``local``.

    Args:
        embed: class of the patch embedding; takes input channels, channels and ``settings``.
        settings: keys of the arch that it takes. With 'shifts', it returns a variant for each.
        attention: attention of the first block, from channels, heads and ``shared_kv``; ``None``
            for global attention.
    """

    embed: Callable[..., PatchEmbed | ShiftedPatchEmbed]
    settings: tuple[str, ...]
    attention: Callable[[int, int, bool], nn.Module] | None

    @property
    def has_variants(self) -> bool:
        """Whether the patch embedding returns shifted variants."""
        return 'shifts' in self.settings

    def build_embed(
        self, in_channels: int, channels: int, arch: Mapping[str, Any]
    ) -> PatchEmbed | ShiftedPatchEmbed:
        """Builds the patch embedding of an arch."""
        return self.embed(in_channels, channels, **{key: arch[key] for key in self.settings})


PATCH = ('kernel_size', 'stride', 'padding')
LOCALS: dict[str | None, Local] = {
    'shift': Local(ShiftedPatchEmbed, (*PATCH, 'shifts', 'border'), LocalShiftAttention),
    'translation': Local(TranslatedPatchEmbed, (*PATCH, 'shifts'), LocalShiftAttention),
    'window': Local(PatchEmbed, PATCH, swin_attention),
    'convolution': Local(ConvTokenEmbed, ('stride',), ConvProjectionAttention),
    None: Local(PatchEmbed, PATCH, None),
}
POSITIONS = {'per_variant': True, 'shared': False}


def check_num_shifts(num_shifts: int, most_shifts: int, local: str | None) -> None:
    """Raises an OptionError unless ``local`` uses shifts and the arch has enough of them."""
    if not LOCALS[local].has_variants:
        raise OptionError(
            f'SAGViT: num_shifts={num_shifts}, but there are no shifts with local={local!r}; '
            'omit num_shifts'
        )
    if num_shifts not in range(1, most_shifts + 1):
        raise OptionError(
            f'SAGViT: num_shifts={num_shifts} must lie in [1, {most_shifts}]: the arch has '
            f'{most_shifts} shifts'
        )

"""SAG: "Locally Shifted Attention With Early Global Integration".

The classifier is that of the paper and its official release, number by number. The pyramid for
dense prediction is ours: the output of each stage before its down-sampling, each through a
LayerNorm of its own; images of any size; ``kv_pools``.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..layers import (
    FFN,
    ConvEmbed,
    GlobalAttention,
    LocalShiftAttention,
    PositionTable,
    ShiftedPatchEmbed,
)
from ..layers.init import trunc_normal_
from ..layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS
from ..registry import register_backbone
from .base import PyramidBackbone, per_stage

NORM_EPS = 1e-6
FFN_RATIO = 4


class SAGBlock(nn.Module):
    """Pre-norm block: attention, then an FFN; the norms belong to the stage.

    Local attention reads all shifted variants; the unshifted one alone has the residual connection
    and goes on.

    Args:
        attention: global attention, or local attention over variants.
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


IMAGENET = dict(shifts=IMAGENET_SHIFTS, border='extend', image_size=224)
CIFAR = dict(kernel_size=3, stride=1, padding=1, shifts=CIFAR_SHIFTS, border='roll', image_size=32)


@register_backbone
class SAGViT(PyramidBackbone):
    """SAG backbone.

    Patches of T shifted copies of the image; the first block attends from each patch to its own
    variants, all others attend globally. ``out_indices=-1`` gives the official classifier, whose
    last norm is the output norm.

    Global attention takes time quadratic in the number of positions, which dominates at the sizes
    of detection: ``kv_pools=(4, 2, 1)`` divides it by 16 and 4 in the first two stages. That is
    ours, no part of the paper; it has no weights, those of the paper's models fit.

    Args:
        arch: 'tiny', 'small' (ImageNet), 'cifar_tiny', 'cifar_small', 'cifar_base', or a dict with
            ``channels``, ``depths``, ``num_heads`` (one entry a stage each), ``shared_kv`` (keys
            and values shared by all heads), ``kernel_size``, ``stride``, ``padding``, ``shifts``
            and ``border`` of the patch embedding (:class:`~mmvitattn.layers.ShiftedPatchEmbed`),
            ``image_size`` that the position tables fit, in pixels, one number or (height, width),
            and, optionally, ``drop_path_rate``.
        in_channels: channels of the image.
        out_indices: stages to return, default all; negative ones count from the last.
        drop_path_rate: drop-path rate of every block; default the arch's own (paper: 0.1).
        kv_pools: side of the squares of positions that keys and values of global attention
            average, one or one a stage; 1 for none.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training (there are none).
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ValueError: for an unknown arch or options that do not fit it.

    Example:
        >>> features = SAGViT('small', out_indices=(0, 1, 2))(torch.rand(1, 3, 224, 224))
        >>> [tuple(f.shape[1:]) for f in features]
        [(64, 56, 56), (192, 28, 28), (384, 14, 14)]
    """

    stage_keys = ('channels', 'depths', 'num_heads')
    no_decay_keys = ('.position.table',)
    arch_zoo = {
        'tiny': dict(
            channels=(192,) * 4,
            depths=(2, 4, 4, 4),
            num_heads=(4,) * 4,
            shared_kv=False,
            kernel_size=9,
            stride=7,
            padding=1,
            **IMAGENET,
        ),
        'small': dict(
            channels=(64, 192, 384),
            depths=(2, 2, 10),
            num_heads=(2, 6, 12),
            shared_kv=False,
            kernel_size=4,
            stride=4,
            padding=0,
            **IMAGENET,
        ),
        **{
            name: dict(
                channels=(channels,) * 4,
                depths=depths,
                num_heads=(channels // 64,) * 4,
                shared_kv=shared_kv,
                **CIFAR,
            )
            for name, channels, depths, shared_kv in (
                ('cifar_tiny', 192, (2, 4, 4, 4), True),
                ('cifar_small', 384, (2, 4, 4, 4), False),
                ('cifar_base', 768, (3, 3, 3, 3), False),
            )
        },
    }

    def __init__(
        self,
        arch: str | Mapping = 'small',
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        kv_pools: int | Sequence[int] = 1,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = self.resolve_arch(arch, optional=('drop_path_rate',))
        channels, stages = settings['channels'], range(len(settings['channels']))
        strides = [settings['stride'] * 2**i for i in stages]
        super().__init__(
            channels,
            strides,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            min_size=min(32, strides[-1]),
            init_cfg=init_cfg,
        )
        if drop_path_rate is None:
            drop_path_rate = settings.get('drop_path_rate', 0.1)
        kv_pools = per_stage('kv_pools', kv_pools, len(stages))
        self.stem = ShiftedPatchEmbed(
            in_channels,
            channels[0],
            **{k: settings[k] for k in ('kernel_size', 'stride', 'padding', 'shifts', 'border')},
        )
        grids = self._grids(settings['image_size'])
        for i in range(self.num_stages):
            if i > 0:
                self.downsamples.append(SAGDownsample(channels[i - 1], channels[i]))
            self.stages.append(self._stage(settings, i, grids[i], kv_pools[i], drop_path_rate))
        self.add_output_norms(NORM_EPS)

    def _grids(self, image_size: int | Sequence[int]) -> list[tuple[int, int]]:
        """Rows and columns of each stage's map."""
        size = (image_size,) * 2 if isinstance(image_size, int) else image_size
        grids = [self.stem.grid_size(*size)]
        for _ in range(self.num_stages - 1):
            grids.append(tuple(-(-n // 2) for n in grids[-1]))
        return grids

    def _stage(
        self,
        settings: Mapping,
        i: int,
        grid_size: tuple[int, int],
        kv_pool: int,
        drop_path: float,
    ) -> SAGStage:
        channels = settings['channels'][i]
        options = (channels, settings['num_heads'][i], settings['shared_kv'])
        attentions = [GlobalAttention(*options, kv_pool) for _ in range(settings['depths'][i])]
        if i == 0:
            attentions[0] = LocalShiftAttention(*options)
        blocks = [SAGBlock(attention, channels, drop_path) for attention in attentions]
        num_variants = len(settings['shifts']) if i == 0 else None
        return SAGStage(blocks, PositionTable(grid_size, channels, num_variants), channels)

    def forward_stage(self, stage: SAGStage, x: Tensor) -> Tensor:
        """Adds positions, then runs the blocks on the norms that they share."""
        x = stage.position(x)
        for block in stage.blocks:
            x = self.run_block(block, x, stage.norm1, stage.norm2)
        return x

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See the base class; what a stage's blocks share is as deep as the first of them."""
        name = param_name.removeprefix(prefix)
        if param_name.startswith(prefix) and name.startswith('stages.'):
            stage, part, *rest = name.removeprefix('stages.').split('.')
            block = rest[0] if part == 'blocks' else 0
            return super().get_layer_depth(f'{prefix}stages.{stage}.{block}', prefix)
        return super().get_layer_depth(param_name, prefix)

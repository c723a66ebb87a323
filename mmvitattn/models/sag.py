"""SAG: "Locally Shifted Attention With Early Global Integration".

The classifier is that of the paper and its official release, number by number. The pyramid for
dense prediction is ours: the output of each stage before its down-sampling, each through a
LayerNorm of its own; images of any size; ``kv_pools``.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..layers import GlobalAttention, PositionTable
from ..layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS
from ..registry import register_model
from .base import PyramidBackbone
from .options import per_stage
from .sag_blocks import LOCALS, NORM_EPS, SAGBlock, SAGDownsample, SAGStage, check_options

IMAGENET = dict(shifts=IMAGENET_SHIFTS, border='extend', image_size=224)
CIFAR = dict(kernel_size=3, stride=1, padding=1, shifts=CIFAR_SHIFTS, border='roll', image_size=32)


@register_model
class SAGViT(PyramidBackbone):
    """SAG backbone.

    Patches of T shifted copies of the image; the first block attends from each patch to its own
    variants, all others attend globally. ``out_indices=-1`` gives the official classifier, whose
    last norm is the output norm.

    Global attention takes time quadratic in the number of positions, which dominates at the sizes
    of detection: ``kv_pools=(4, 2, 1)`` divides it by 16 and 4 in the first two stages. That is
    ours, no part of the paper; it has no weights, those of the paper's models fit.

    ``local``, ``position`` and ``num_shifts`` are the paper's ablations (section 4.1). ``local``
    says how the first block sees the neighbourhood of a patch:

    - 'shift': T shifted copies of the image, each embedded by a convolution of its own, and
      attention of each patch to its variants. The paper's model.
    - 'translation': the same attention; the copies are translations of the image, continued by its
      reflection, and one convolution embeds them all.
    - 'window': one plain embedding; the block is Swin's, attention in windows of 7 x 7 positions.
    - 'convolution': CvT's overlapping embedding with a LayerNorm; queries, keys and values of the
      block are projected by convolutions, those of keys and values of stride 2.
    - ``None``: one plain embedding, no local block: the first one is global, too.

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
        local: how the first block sees its neighbourhood: 'shift', 'translation', 'window',
            'convolution' or ``None``.
        position: 'per_variant', a position table for each shifted variant, or 'shared', one for all
            of them.
        num_shifts: takes the first of the arch's shifts alone; default all.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training; there are some in the block of
            'convolution' alone.
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
    no_decay_keys = ('.position.table', '.position_bias')
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
        local: str | None = 'shift',
        position: str = 'per_variant',
        num_shifts: int | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = self.resolve_arch(arch, optional=('drop_path_rate',))
        check_options(local, position, num_shifts, len(settings['shifts']))
        settings['shifts'] = settings['shifts'][:num_shifts]
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
        self.local, self.position = local, position
        self.stem = LOCALS[local].build_embed(in_channels, channels[0], settings)
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
        num_variants = None
        if i == 0:
            local = LOCALS[self.local]
            if local.attention is not None:
                attentions[0] = local.attention(*options)
            if local.has_variants and self.position == 'per_variant':
                num_variants = len(settings['shifts'])
        blocks = [SAGBlock(attention, channels, drop_path) for attention in attentions]
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

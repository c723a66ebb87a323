"""SAG: "Locally Shifted Attention With Early Global Integration".

The classifier computes the same numbers as the paper's official release. Not part of the release
are the pyramid for dense prediction (the outputs of all stages before their down-samplings, each
followed by its own LayerNorm), images of any size, and ``kv_pools``.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..layers import GlobalAttention, PositionTable
from ..layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS
from ..registry import register_model
from .base import PyramidBackbone
from .options import choose, per_stage
from .sag_blocks import (
    LOCALS,
    NORM_EPS,
    POSITIONS,
    SAGBlock,
    SAGDownsample,
    SAGStage,
    check_num_shifts,
)

IMAGENET = dict(shifts=IMAGENET_SHIFTS, border='extend', image_size=224)
CIFAR = dict(kernel_size=3, stride=1, padding=1, shifts=CIFAR_SHIFTS, border='roll', image_size=32)


@register_model
class SAGViT(PyramidBackbone):
    """SAG backbone.

    Patches of T shifted copies of the image are embedded; the first block attends from each patch
    to its own variants, all others attend globally. ``out_indices=-1`` is the official classifier;
    the output norm is its last norm.

    The time of global attention is quadratic in the number of positions and dominates at image
    sizes of detection: ``kv_pools=(4, 2, 1)`` divides it by 16 and 4 in the first two stages. This
    option is not part of the paper; it has no weights, so those of the paper's models can be used.

    ``local``, ``position`` and ``num_shifts`` are the paper's ablations (section 4.1). ``local`` is
    the way in which the first block uses the neighbourhood of a patch:

    - 'shift': T shifted copies of the image, each embedded by its own convolution, and attention
      from each patch to its variants. The paper's model.
    - 'translation': the same attention; the copies are translations of the image, filled by
      reflection and embedded by one convolution.
    - 'window': one patch embedding; attention in windows of 7 x 7 positions, as in Swin.
    - 'convolution': CvT's overlapping embedding with a LayerNorm; queries, keys and values of the
      block are projected by convolutions, with stride 2 for keys and values.
    - ``None``: one patch embedding and no local block: the first block is global, too.

    Args:
        arch: 'tiny', 'small' (ImageNet), 'cifar_tiny', 'cifar_tiny_4_heads' (as the release's
            script builds it), 'cifar_small', 'cifar_base', or a dict with ``channels``, ``depths``,
            ``num_heads`` (one entry a stage each), ``shared_kv`` (keys and values shared by all
            heads), ``kernel_size``, ``stride``, ``padding``, ``shifts`` and ``border`` of the patch
            embedding (:class:`~mmvitattn.layers.ShiftedPatchEmbed`), ``image_size`` that the
            position tables fit, in pixels, one number or (height, width), and, optionally,
            ``drop_path_rate``.
        in_channels: channels of the image.
        out_indices: stages to return; default: all. Negative ones count from the last.
        drop_path_rate: drop-path rate of every block; default: the arch's own (paper: 0.1).
        kv_pools: side of the squares of positions over which keys and values of global attention
            are averaged, one or one per stage; 1 for no average.
        local: 'shift', 'translation', 'window', 'convolution' or ``None``, see above.
        position: 'per_variant', a position table for each shifted variant, or 'shared', one for all
            of them.
        num_shifts: number of shifts to use, the first ones of the arch; default: all.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training; only local='convolution' has
            BatchNorms.
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: MMEngine's initialisation config.

    Raises:
        OptionError: for an unknown arch or options that do not fit it.

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
                num_heads=(num_heads,) * 4,
                shared_kv=shared_kv,
                **CIFAR,
            )
            for name, channels, depths, num_heads, shared_kv in (
                ('cifar_tiny', 192, (2, 4, 4, 4), 3, True),
                ('cifar_tiny_4_heads', 192, (2, 4, 4, 4), 4, True),  # the release's script
                ('cifar_small', 384, (2, 4, 4, 4), 6, False),
                ('cifar_base', 768, (3, 3, 3, 3), 12, False),
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
        parts = choose('SAGViT', 'local', local, LOCALS)
        per_variant = choose('SAGViT', 'position', position, POSITIONS) and parts.has_variants
        if num_shifts is not None:
            check_num_shifts(num_shifts, len(settings['shifts']), local)
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
        image_size = settings['image_size']
        size = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.stem = stem = parts.build_embed(in_channels, channels[0], settings)
        grid: Sequence[int] = stem.grid_size(*size)
        for i in range(self.num_stages):
            if i > 0:
                self.downsamples.append(SAGDownsample(channels[i - 1], channels[i]))
                grid = [-(-n // 2) for n in grid]
            options = (channels[i], settings['num_heads'][i], settings['shared_kv'])
            attentions: list[nn.Module] = [
                GlobalAttention(*options, kv_pools[i]) for _ in range(settings['depths'][i])
            ]
            if i == 0 and parts.attention is not None:
                attentions[0] = parts.attention(*options)
            num_variants = len(settings['shifts']) if i == 0 and per_variant else None
            blocks = [SAGBlock(attention, channels[i], drop_path_rate) for attention in attentions]
            position_table = PositionTable(grid, channels[i], num_variants)
            self.stages.append(SAGStage(blocks, position_table, channels[i]))
        self.add_output_norms(NORM_EPS)

    def forward_stage(self, stage: SAGStage, x: Tensor) -> Tensor:
        """Adds positions, then runs the blocks with their shared norms."""
        x = stage.position(x)
        for block in stage.blocks:
            x = self.run_block(block, x, stage.norm1, stage.norm2)
        return x

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See the base class; parameters shared by a stage belong to its first block."""
        name = param_name.removeprefix(prefix)
        if param_name.startswith(prefix) and name.startswith('stages.'):
            stage, part, *rest = name.removeprefix('stages.').split('.')
            block = rest[0] if part == 'blocks' else 0
            return super().get_layer_depth(f'{prefix}stages.{stage}.{block}', prefix)
        return super().get_layer_depth(param_name, prefix)

"""LinGlo: key-only attention in all stages ("Rethinking Query-Key Pairwise Interactions in Vision
Transformers").

The authors published no code. Choices that the paper does not specify: attention projections have
biases; LayerNorm has eps 1e-6; down-sampling is LayerNorm, then convolution, as in ConvNeXt, which
the paper cites; every output has its own LayerNorm.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from ..errors import OptionError
from ..layers import PositionTable
from ..layers.init import spread_bias_
from ..registry import register_model
from .base import PyramidBackbone
from .linglo_blocks import (
    ATTENTIONS,
    DOWNSAMPLES,
    EMBEDS,
    LAYOUT,
    NORM_EPS,
    check_layout,
    cpe_options,
    make_downsample,
)
from .options import choose, linear_ramp


@register_model
class LinGlo(PyramidBackbone):
    """LinGlo backbone.

    The defaults are the paper's model; ``attention``, ``position``, ``layout``, ``stem``,
    ``downsample`` and ``patch_size`` are the options of its ablations (section 5), in any
    combination.

    Args:
        arch: 'b0', 'b1', 'b2', or a dict with ``channels``, ``depths``, ``num_heads``,
            ``ffn_ratios`` (lists with one entry per stage) and, optionally, ``drop_path_rate``.
        in_channels: channels of the image.
        out_indices: stages to return; default: all. Negative ones count from the last.
        drop_path_rate: largest drop-path rate of the linear ramp; default: the arch's own.
        attention: 'key_only' or 'dot_product', which is quadratic in positions (section 5.2).
        position: position encoding inside the FFNs: 'rp_cpe', 'r_cpe' (one branch), 'p_cpe' (no
            skip connection), 'cpe' (neither; table 6), or a dict with ``num_branches``, ``skip``,
            ``kernel_size`` of :class:`~mmvitattn.layers.RPCPE`; or 'absolute', a table of learned
            vectors added to the input of each stage, as in PVT; or ``None``.
        layout: a letter for each stage, 'H' hybrid or 'C' convolutional with squeeze-and-excitation
            (table 5), e.g. 'CCHH'; default: all hybrid.
        stem: 'conv', overlapping patches, or 'patch', disjoint patches (section 5.4).
        downsample: 'conv' or 'patch' between stages, or ``None`` to keep one resolution, for an
            arch of equal channels in all stages.
        patch_size: stride of the stem, in pixels.
        image_size: size for which the tables of position='absolute' are made, in pixels, one number
            or (height, width); for other sizes, they are resized.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training.
        with_cp: recompute each block in the backward pass to save memory.
        deploy: build the folded model, for weights saved after ``switch_to_deploy()``.
        init_cfg: MMEngine's initialisation config.

    Raises:
        OptionError: for an unknown arch or options that do not fit it.

    Example:
        >>> features = LinGlo('b0')(torch.rand(1, 3, 224, 224))
        >>> [tuple(f.shape[1:]) for f in features]
        [(32, 56, 56), (64, 28, 28), (160, 14, 14), (256, 7, 7)]
    """

    stage_keys = ('channels', 'depths', 'num_heads', 'ffn_ratios')
    no_decay_keys = ('.saliency', '.position.table')
    arch_zoo = {
        name: dict(
            channels=channels,
            depths=depths,
            num_heads=(1, 2, 5, 8),
            ffn_ratios=(8, 8, 4, 4),
            drop_path_rate=0.1,
        )
        for name, channels, depths in (
            ('b0', (32, 64, 160, 256), (2, 3, 3, 2)),
            ('b1', (64, 128, 320, 512), (2, 3, 3, 2)),
            ('b2', (64, 128, 320, 512), (3, 5, 9, 3)),
        )
    }

    def __init__(
        self,
        arch: str | Mapping = 'b2',
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        attention: str = 'key_only',
        position: str | Mapping | None = 'rp_cpe',
        layout: str | None = None,
        stem: str = 'conv',
        downsample: str | None = 'conv',
        patch_size: int = 4,
        image_size: int | Sequence[int] = 224,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = self.resolve_arch(arch, optional=('drop_path_rate',))
        channels = settings['channels']
        if patch_size < 1:
            raise OptionError(
                f'LinGlo: patch_size={patch_size} must be a positive number of pixels'
            )
        stride_step = 1 if downsample is None else 2
        strides = [patch_size * stride_step**i for i in range(len(channels))]
        super().__init__(
            channels,
            strides,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        if drop_path_rate is None:
            drop_path_rate = settings.get('drop_path_rate', 0.1)
        rates = linear_ramp(drop_path_rate, settings['depths'])
        make_attention = choose('LinGlo', 'attention', attention, ATTENTIONS)
        stem_embed = choose('LinGlo', 'stem', stem, EMBEDS)
        embed = choose('LinGlo', 'downsample', downsample, DOWNSAMPLES)
        cpe = cpe_options(position)
        layout = check_layout(layout, len(channels), cpe)

        patches = stem_embed(in_channels, channels[0], patch_size)
        spread_bias_(patches.conv)
        self.stem = nn.Sequential(patches, nn.LayerNorm(channels[0], eps=NORM_EPS))
        for i in range(self.num_stages):
            if i > 0:
                self.downsamples.append(make_downsample(embed, channels[i - 1], channels[i]))
            options = dict(channels=channels[i], ffn_ratio=settings['ffn_ratios'][i], cpe=cpe)
            if layout[i] == 'H':
                options.update(num_heads=settings['num_heads'][i], attention=make_attention)
            blocks = (LAYOUT[layout[i]](**options, drop_path=rate) for rate in rates[i])
            self.stages.append(nn.Sequential(*blocks))
        if position == 'absolute':
            self._add_position_tables(image_size, channels, strides)
        self.add_output_norms(NORM_EPS)
        if deploy:
            self.switch_to_deploy()

    def _add_position_tables(
        self, image_size: int | Sequence[int], channels: Sequence[int], strides: Sequence[int]
    ) -> None:
        """Adds a table at the end of the stem and of each down-sampling."""
        size = (image_size,) * 2 if isinstance(image_size, int) else image_size
        for i, embed in enumerate([self.stem, *self.downsamples]):
            grid = [-(-n // strides[i]) for n in size]
            embed.add_module('position', PositionTable(grid, channels[i]))

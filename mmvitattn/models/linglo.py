"""LinGlo: key-only attention in all stages ("Rethinking Query-Key Pairwise Interactions in Vision
Transformers").

The authors published no code. What the paper leaves open is settled here as follows: attention
projections have biases; LayerNorm eps 1e-6; the down-sampling order LayerNorm, convolution is
ConvNeXt's, which the paper cites; a LayerNorm of its own on every output.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..layers import FFN, RPCPE, ConvEmbed, KeyOnlyAttention
from ..registry import register_backbone
from .base import PyramidBackbone, linear_ramp

NORM_EPS = 1e-6


class LinGloBlock(nn.Module):
    """Pre-norm block: key-only attention, then an FFN with RP-CPE (paper, figure 3b).

    Args:
        channels: channels C.
        num_heads: attention heads.
        ffn_ratio: hidden over outer channels of the FFN.
        drop_path: probability with which a branch is dropped for a sample.
        cpe_branches: parallel branches of the position encoding.
        cpe_skip: whether the position encoding adds its input.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        ffn_ratio: float,
        drop_path: float = 0.0,
        cpe_branches: int = 4,
        cpe_skip: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(channels * ffn_ratio)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = KeyOnlyAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = FFN(channels, hidden, position=RPCPE(hidden, cpe_branches, cpe_skip))
        self.drop_path = StochasticDepth(drop_path, mode='row')

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


@register_backbone
class LinGlo(PyramidBackbone):
    """LinGlo backbone.

    Args:
        arch: 'b0', 'b1', 'b2', or a dict with ``channels``, ``depths``, ``num_heads``,
            ``ffn_ratios`` (one entry a stage each) and, optionally, ``drop_path_rate``.
        in_channels: channels of the image.
        out_indices: stages to return, default all; negative ones count from the last.
        drop_path_rate: largest drop-path rate of the linear ramp; default the arch's own.
        cpe_branches: parallel branches of the position encoding (paper: 4).
        cpe_skip: whether the position encoding has a skip connection (paper: yes).
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training.
        with_cp: recompute each block in the backward pass to save memory.
        deploy: build the folded form, for weights saved after ``switch_to_deploy()``.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ValueError: for an unknown arch or options that do not fit it.

    Example:
        >>> features = LinGlo('b0')(torch.rand(1, 3, 224, 224))
        >>> [tuple(f.shape[1:]) for f in features]
        [(32, 56, 56), (64, 28, 28), (160, 14, 14), (256, 7, 7)]
    """

    stage_keys = ('channels', 'depths', 'num_heads', 'ffn_ratios')
    no_decay_keys = ('.saliency',)
    arch_zoo = {
        name: dict(
            channels=channels,
            depths=depths,
            num_heads=(1, 2, 5, 8),
            ffn_ratios=(8, 8, 4, 4),
            drop_path_rate=drop_path_rate,
        )
        for name, channels, depths, drop_path_rate in (
            ('b0', (32, 64, 160, 256), (2, 3, 3, 2), 0.0),
            ('b1', (64, 128, 320, 512), (2, 3, 3, 2), 0.1),
            ('b2', (64, 128, 320, 512), (3, 5, 9, 3), 0.1),
        )
    }

    def __init__(
        self,
        arch: str | Mapping = 'b2',
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        cpe_branches: int = 4,
        cpe_skip: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = self.resolve_arch(arch, optional=('drop_path_rate',))
        channels, depths = settings['channels'], settings['depths']
        super().__init__(
            channels,
            strides=[4 * 2**i for i in range(len(channels))],
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        if drop_path_rate is None:
            drop_path_rate = settings.get('drop_path_rate', 0.1)
        rates = linear_ramp(drop_path_rate, depths)
        self.stem = nn.Sequential(
            ConvEmbed(in_channels, channels[0], kernel_size=7, stride=4, padding=3),
            nn.LayerNorm(channels[0], eps=NORM_EPS),
        )
        for i in range(self.num_stages):
            if i > 0:
                self.downsamples.append(_downsample(channels[i - 1], channels[i]))
            blocks = (
                LinGloBlock(
                    channels[i],
                    settings['num_heads'][i],
                    settings['ffn_ratios'][i],
                    rate,
                    cpe_branches,
                    cpe_skip,
                )
                for rate in rates[i]
            )
            self.stages.append(nn.Sequential(*blocks))
        self.add_output_norms(NORM_EPS)
        if deploy:
            self.switch_to_deploy()


def _downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(in_channels, eps=NORM_EPS),
        ConvEmbed(in_channels, out_channels, kernel_size=3, stride=2, padding=1),
    )

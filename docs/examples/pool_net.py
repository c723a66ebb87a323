"""Example of a new backbone: mixes positions by average pooling, as in PoolFormer."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmvitattn.layers import FFN, ConvEmbed
from mmvitattn.layers.drop_path import DropPath
from mmvitattn.layers.init import spread_bias_
from mmvitattn.models.base import PyramidBackbone
from mmvitattn.models.options import linear_ramp
from mmvitattn.registry import register_model


class PoolNetBlock(nn.Module):
    """Pre-norm block: pooling, then an FFN.

    Args:
        channels: channels C.
        drop_path: probability with which a branch is dropped for a sample.
    """

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FFN(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        y = self.norm1(x).permute(0, 3, 1, 2)
        x = x + self.drop_path((self.pool(y) - y).permute(0, 2, 3, 1))
        return x + self.drop_path(self.ffn(self.norm2(x)))


@register_model
class PoolNet(PyramidBackbone):
    """PoolNet backbone.

    Args:
        arch: 'tiny', or a dict with ``channels``, ``depths`` (lists with one entry per stage) and
            ``drop_path_rate``.
        in_channels: channels of the image.
        out_indices: stages to return, default all; negative ones count from the last.
        drop_path_rate: largest drop-path rate of the linear ramp; default the arch's own.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training (there are none).
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: MMEngine's initialisation config.
    """

    stage_keys = ('channels', 'depths')
    arch_zoo = {'tiny': dict(channels=(32, 64, 128, 256), depths=(1, 1, 2, 1), drop_path_rate=0.1)}

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = self.resolve_arch(arch)
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
        largest = settings['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        rates = linear_ramp(largest, depths)
        self.stem = ConvEmbed(in_channels, channels[0], kernel_size=7, stride=4, padding=3)
        spread_bias_(self.stem.conv)
        for i in range(self.num_stages):  # stages after the last output are not built
            if i > 0:
                down = ConvEmbed(channels[i - 1], channels[i], kernel_size=3, stride=2, padding=1)
                self.downsamples.append(nn.Sequential(nn.LayerNorm(channels[i - 1]), down))
            self.stages.append(nn.Sequential(*(PoolNetBlock(channels[i], r) for r in rates[i])))
        self.add_output_norms()

"""A feature pyramid network whose top-down path up-samples with learned-query attention."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..layers import QnAUpsample
from ..registry import register_model

EXTRA_SOURCES = ('on_input', 'on_lateral', 'on_output')


class QnAUpsample2d(QnAUpsample):
    """:class:`~mmvitattn.layers.QnAUpsample` for maps (B, C, H, W), as mmcv's up-sampling layers.

    Registered as ``QnAUpsample``: ``build_upsample_layer(dict(type='QnAUpsample', ...))``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, H, W) to (B, C_out, scale H, scale W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


register_model(QnAUpsample2d, 'QnAUpsample')


@register_model
class QnAFPN(nn.Module):
    """Feature pyramid network ("Feature Pyramid Networks for Object Detection", section 3) with
    learned up-sampling: each coarser map reaches the next finer one through a QnA layer instead of
    nearest-neighbour interpolation.

    Takes the place of ``FPN`` in configs of mmdet and mmsegmentation, with its argument names.

    Args:
        in_channels: channels of each input, from fine to coarse.
        out_channels: channels of every output.
        num_outs: number of outputs; those beyond the inputs halve the coarsest map.
        start_level: first input that is used.
        add_extra_convs: source of the additional outputs: 'on_input' convolves the coarsest input,
            'on_lateral' its lateral map, 'on_output' its output; ``False`` subsamples the
            coarsest output.
        num_heads: heads of the up-sampling layers; must divide ``out_channels``. The default gives
            256 channels heads of 8 channels, as in QnA-ViT-tiny.
        kernel_size: odd side of the up-sampling windows, in positions of the coarser map.
        num_queries: learned queries for each position of the finer map.

    Raises:
        OptionError: if ``start_level`` or ``num_outs`` does not fit the inputs, or
            ``add_extra_convs`` is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        add_extra_convs: str | bool = False,
        num_heads: int = 32,
        kernel_size: int = 3,
        num_queries: int = 2,
    ) -> None:
        super().__init__()
        used = list(in_channels)[start_level:]
        if not used or start_level < 0 or num_outs < len(used):
            raise OptionError(
                f'QnAFPN: start_level={start_level} and num_outs={num_outs} do not fit '
                f'{len(in_channels)} inputs'
            )
        if add_extra_convs is True:
            add_extra_convs = 'on_input'
        if add_extra_convs and add_extra_convs not in EXTRA_SOURCES:
            raise OptionError(
                f'QnAFPN: add_extra_convs={add_extra_convs!r}; choose one of {EXTRA_SOURCES}, or '
                'False'
            )
        self.num_inputs, self.start_level, self.num_outs = len(in_channels), start_level, num_outs
        self.extra_source = add_extra_convs or None
        self.lateral_convs = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in used)
        self.upsamples = nn.ModuleList(
            QnAUpsample2d(
                out_channels,
                out_channels,
                kernel_size=kernel_size,
                num_heads=num_heads,
                num_queries=num_queries,
            )
            for _ in used[1:]
        )
        self.fpn_convs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in used
        )
        self.extra_convs = nn.ModuleList()
        if self.extra_source:
            first = used[-1] if self.extra_source == 'on_input' else out_channels
            for i in range(num_outs - len(used)):
                channels = first if i == 0 else out_channels
                self.extra_convs.append(nn.Conv2d(channels, out_channels, 3, 2, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as mmdet's FPN
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Computes the pyramid.

        Args:
            inputs: one map (B, C_i, H_i, W_i) for each of ``in_channels``, each half the size of
                the one before, rounded up.

        Returns:
            ``num_outs`` maps (B, out_channels, H_i, W_i), from fine to coarse.

        Raises:
            ValueError: for another number of inputs.
        """
        if len(inputs) != self.num_inputs:
            raise ValueError(f'QnAFPN takes {self.num_inputs} maps, got {len(inputs)}')
        used = inputs[self.start_level :]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used, strict=True)]
        for i in range(len(laterals) - 2, -1, -1):
            height, width = laterals[i].shape[2:]
            # An odd size was rounded up: the last row or column has no counterpart.
            laterals[i] = laterals[i] + self.upsamples[i](laterals[i + 1])[:, :, :height, :width]
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        sources = dict(on_input=used[-1], on_lateral=laterals[-1], on_output=outputs[-1])
        x = sources[self.extra_source] if self.extra_source else outputs[-1]
        for conv in self.extra_convs:
            x = conv(x)
            outputs.append(x)
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return tuple(outputs)

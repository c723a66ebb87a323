"""QnA-ViT: learned-query attention and window self-attention ("Learned Queries for Efficient Local
Attention").

The classifier computes the same numbers as the paper's official release. The pyramid for dense
prediction is not part of the release: the outputs of all stages before their down-sampling blocks,
each followed by its own LayerNorm.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import FFN, QnALayer, WindowAttention
from ..layers.drop_path import DropPath
from ..layers.init import lecun_normal_, spread_bias_
from ..layers.patch_embed import remainder
from ..ops.dispatch import is_exporting, is_traced
from ..registry import register_model
from .base import PyramidBackbone
from .options import choose, linear_ramp, per_stage
from .qna_vit_variants import AvgPoolSkip, ResNetStem

NORM_EPS = 1e-6
FFN_RATIO = 4


class PatchStem(nn.Module):
    """4 x 4 patches by a convolution; other sizes than multiples of 4 are padded on both sides.

    Args:
        in_channels: channels of the image.
        channels: channels of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=4, stride=4, bias=False)
        lecun_normal_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / 4), ceil(W / 4), C)."""
        bottom, right = remainder(x.shape[1], 4), remainder(x.shape[2], 4)
        if is_traced() or bottom or right:
            top, left = bottom // 2, right // 2
            x = F.pad(x, (0, 0, left, right - left, top, bottom - top))
        return _convolve(self.conv, x)


class ConvSkip(nn.Module):
    """Every second position, through a 1 x 1 convolution.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        kernel_size: window side of the block's attention; not used here.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=1, stride=2, bias=False)
        lecun_normal_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / 2), ceil(W / 2), C)."""
        if is_exporting():  # torch.export can compare the size of a slice with that of attention
            x = x[:, ::2, ::2].clone(memory_format=torch.contiguous_format)
            return F.linear(x, self.conv.weight.flatten(1))
        return _convolve(self.conv, x)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class QnAViTBlock(nn.Module):
    """Pre-norm block: attention, then an FFN, each with a residual connection.

    With ``skip`` it is a down-sampling block: the input of the skip path is not normalised, and the
    attention branch is never dropped.

    Args:
        attention: module from (B, H, W, C_in) to (B, H', W', C).
        in_channels: channels C_in of the input.
        channels: channels C of the output.
        skip: module on the attention's skip path; ``None`` for the identity.
        drop_path: probability with which a branch is dropped for a sample.
        layer_scale: start value of a factor for each channel of each branch; ``None`` for none.
    """

    layer_scale1: nn.Parameter | None
    layer_scale2: nn.Parameter | None

    def __init__(
        self,
        attention: nn.Module,
        in_channels: int,
        channels: int,
        skip: nn.Module | None = None,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_channels, eps=NORM_EPS)
        self.attention = attention
        self.skip = skip
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = FFN(channels, FFN_RATIO * channels, approximate='tanh')
        lecun_normal_(self.ffn.fc1)
        lecun_normal_(self.ffn.fc2)
        self.drop_path = DropPath(drop_path)
        self.layer_scale1 = self.layer_scale2 = None
        if layer_scale is not None:
            self.layer_scale1 = nn.Parameter(torch.full((channels,), layer_scale))
            self.layer_scale2 = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, H', W', C)."""
        y = _scaled(self.attention(self.norm1(x)), self.layer_scale1)
        x = x + self.drop_path(y) if self.skip is None else self.skip(x) + y
        return x + self.drop_path(_scaled(self.ffn(self.norm2(x)), self.layer_scale2))


def _scaled(y: Tensor, scale: Tensor | None) -> Tensor:
    return y if scale is None else y * scale


STEMS = {'patch': PatchStem, 'resnet': ResNetStem}
DOWNSAMPLE_SKIPS = {'conv': ConvSkip, 'avgpool': AvgPoolSkip}


@register_model
class QnAViT(PyramidBackbone):
    """QnA-ViT backbone.

    Stage i has ``lsa_depths[i]`` blocks of window self-attention, then ``qna_depths[i]`` blocks of
    learned-query attention; a down-sampling block of learned-query attention, with twice the
    channels and heads, leads to the next stage. ``out_indices=-1`` is the official classifier; the
    output norm is the norm of its head.

    Args:
        arch: 'tiny', 'tiny_7x7', 'small', 'base', or a dict with ``base_channels``, with the lists
            (one entry per stage) ``qna_depths``, ``qna_heads``, ``kernel_sizes``, ``lsa_depths``,
            ``lsa_heads`` and ``window_sizes``, and, optionally, ``drop_path_rate``.
        in_channels: channels of the image.
        out_indices: stages to return; default: all. Negative ones count from the last.
        drop_path_rate: largest drop-path rate of the linear ramp; default: the arch's own.
        kernel_sizes: odd window side of learned-query attention, one or one per stage; default: the
            arch's own.
        window_sizes: window side of window self-attention, one or one per stage; default: the
            arch's own. The tables of weights for other sizes are resized when they are loaded, like
            those for other ``kernel_sizes``.
        num_queries: learned queries of each layer.
        normalize_queries: whether the learned queries are divided by their norm, one or one per
            stage; a down-sampling block belongs to the stage before it.
        position_bias: see :class:`~mmvitattn.layers.QnALayer`.
        attention_scale: see :class:`~mmvitattn.layers.QnALayer`.
        layer_scale: start value of LayerScale on each branch; ``None`` for none.
        stem: 'patch', a 4 x 4 convolution, or 'resnet', a 7 x 7 convolution and max-pooling.
        downsample_skip: skip path of the down-sampling blocks: 'conv', a 1 x 1 convolution with
            stride 2, or 'avgpool', the mean of the attention's window, then a 1 x 1 convolution.
        window_position_bias: see :class:`~mmvitattn.layers.WindowAttention`.
        normalize_stop_grads: see :class:`~mmvitattn.layers.QnALayer`.
        drop_path_downsample: whether the down-sampling blocks are part of the ramp of drop-path
            rates; otherwise their rate is 0.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training; the 'resnet' stem has one.
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: MMEngine's initialisation config.

    Raises:
        OptionError: for an unknown arch or options that do not fit it.

    Example:
        >>> features = QnAViT('tiny')(torch.rand(1, 3, 224, 224))
        >>> [tuple(f.shape[1:]) for f in features]
        [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    """

    stage_keys = (
        *('qna_depths', 'qna_heads', 'kernel_sizes'),
        *('lsa_depths', 'lsa_heads', 'window_sizes'),
    )
    no_decay_keys = ('.query', '.position_bias', '.position_bias_vectors', '.attention_scale')
    arch_zoo = {
        name: dict(
            base_channels=channels,
            qna_depths=(2, 3, depth, 0),
            qna_heads=tuple(qna_heads * 2**i for i in range(4)),
            kernel_sizes=(kernel_size,) * 4,
            lsa_depths=(0, 0, 2 * depth, 2),
            lsa_heads=tuple(lsa_heads * 2**i for i in range(4)),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=drop_path_rate,
        )
        for name, channels, depth, qna_heads, kernel_size, lsa_heads, drop_path_rate in (
            ('tiny', 64, 2, 8, 3, 2, 0.05),
            ('tiny_7x7', 64, 2, 8, 7, 2, 0.05),
            ('small', 64, 6, 8, 3, 2, 0.2),
            ('base', 96, 6, 6, 3, 3, 0.5),
        )
    }

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        kernel_sizes: int | Sequence[int] | None = None,
        window_sizes: int | Sequence[int] | None = None,
        num_queries: int = 2,
        normalize_queries: bool | Sequence[bool] = True,
        position_bias: str | None = 'relative_pos',
        attention_scale: str | None = 'normal',
        layer_scale: float | None = None,
        stem: str = 'patch',
        downsample_skip: str = 'conv',
        window_position_bias: str | None = 'relative_pos',
        normalize_stop_grads: bool = False,
        drop_path_downsample: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        make_stem = choose('QnAViT', 'stem', stem, STEMS)
        make_skip = choose('QnAViT', 'downsample_skip', downsample_skip, DOWNSAMPLE_SKIPS)
        settings = self.resolve_arch(arch, optional=('drop_path_rate',))
        stages = range(len(settings['qna_depths']))
        for key, sizes in (('kernel_sizes', kernel_sizes), ('window_sizes', window_sizes)):
            if sizes is not None:
                settings[key] = per_stage(key, sizes, len(stages))
        channels = [settings['base_channels'] * 2**i for i in stages]
        super().__init__(
            channels,
            strides=[4 * 2**i for i in stages],
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        if drop_path_rate is None:
            drop_path_rate = settings.get('drop_path_rate', 0.1)
        self.layer_scale, self.window_position_bias = layer_scale, window_position_bias
        self.skip_type = make_skip
        self.qna_options = [
            dict(
                kernel_size=settings['kernel_sizes'][i],
                num_queries=num_queries,
                normalize_queries=normalize,
                position_bias=position_bias,
                attention_scale=attention_scale,
                normalize_stop_grads=normalize_stop_grads,
            )
            for i, normalize in enumerate(
                per_stage('normalize_queries', normalize_queries, len(stages))
            )
        ]
        lsa_depths, qna_depths = settings['lsa_depths'], settings['qna_depths']
        # Rates of a stage: those of its blocks, then that of the following down-sampling block.
        counts = [
            lsa_depths[i] + qna_depths[i] + (drop_path_downsample and i < stages[-1])
            for i in stages
        ]
        rates = linear_ramp(drop_path_rate, counts)

        self.stem = make_stem(in_channels, channels[0])
        for i in range(self.num_stages):
            if i > 0:
                rate = rates[i - 1][-1] if drop_path_downsample else 0.0
                self.downsamples.append(self._downsample_block(settings, i - 1, rate))
            self.stages.append(self._stage(settings, i, rates[i]))
        first = next(block for block in self.modules() if isinstance(block, QnAViTBlock))
        spread_bias_(first.norm1)  # the release's zero lets padded images overflow
        self.add_output_norms(NORM_EPS)

    def _stage(self, settings: Mapping, i: int, rates: Sequence[float]) -> nn.Sequential:
        channels = settings['base_channels'] * 2**i
        heads, window_size = settings['lsa_heads'][i], settings['window_sizes'][i]
        attentions: list[nn.Module] = [
            WindowAttention(channels, heads, window_size, position_bias=self.window_position_bias)
            for _ in range(settings['lsa_depths'][i])
        ]
        attentions += [
            QnALayer(channels, settings['qna_heads'][i], **self.qna_options[i])
            for _ in range(settings['qna_depths'][i])
        ]
        return nn.Sequential(
            *(
                QnAViTBlock(
                    attention, channels, channels, drop_path=rate, layer_scale=self.layer_scale
                )
                for attention, rate in zip(attentions, rates, strict=False)
            )
        )

    def _downsample_block(self, settings: Mapping, i: int, rate: float) -> QnAViTBlock:
        in_channels = settings['base_channels'] * 2**i
        channels = 2 * in_channels
        attention = QnALayer(
            channels,
            2 * settings['qna_heads'][i],
            stride=2,
            in_channels=in_channels,
            **self.qna_options[i],
        )
        skip = self.skip_type(in_channels, channels, settings['kernel_sizes'][i])
        return QnAViTBlock(attention, in_channels, channels, skip, rate, self.layer_scale)

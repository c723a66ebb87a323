"""LinGlo's blocks and embeddings, for the options of its ablations (paper, section 5)."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..errors import OptionError
from ..layers import FFN, RPCPE, ConvEmbed, GlobalAttention, KeyOnlyAttention
from ..layers.drop_path import DropPath
from ..layers.init import he_normal_fan_out_, trunc_normal_
from ..layers.patch_embed import PatchEmbed
from .options import choose

NORM_EPS = 1e-6
RP_CPE = dict(num_branches=4, skip=True)

# Values of options.
ATTENTIONS: dict[str, Callable[[int, int], nn.Module]] = {  # arguments: channels, heads
    'key_only': KeyOnlyAttention,
    'dot_product': GlobalAttention,
}
POSITIONS: dict[str | None, Mapping | None] = {  # options of the FFNs' RPCPE, if they have one
    'rp_cpe': RP_CPE,
    'r_cpe': dict(num_branches=1, skip=True),
    'p_cpe': dict(num_branches=4, skip=False),
    'cpe': dict(num_branches=1, skip=False),
    'absolute': None,
    None: None,
}
CPE_OPTIONS = ('num_branches', 'skip', 'kernel_size')


class LinGloBlock(nn.Module):
    """Pre-norm hybrid block: attention, then an FFN with RP-CPE (paper, figure 3b).

    Args:
        channels: channels C.
        num_heads: attention heads.
        ffn_ratio: hidden channels of the FFN over ``channels``.
        drop_path: probability with which a branch is dropped for a sample.
        attention: class of the attention layer, or function of channels and heads.
        cpe: options of the FFN's :class:`~mmvitattn.layers.RPCPE`; ``None`` for none.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        ffn_ratio: float,
        drop_path: float = 0.0,
        attention: Callable[[int, int], nn.Module] = KeyOnlyAttention,
        cpe: Mapping | None = RP_CPE,
    ) -> None:
        super().__init__()
        hidden = int(channels * ffn_ratio)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = attention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = FFN(channels, hidden, position=None if cpe is None else RPCPE(hidden, **cpe))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class LinGloConvBlock(nn.Module):
    """Pre-norm convolutional block with squeeze-and-excitation (paper, section 5.1).

    It consists of the hybrid block's FFN, which is an inverted bottleneck: expansion, depth-wise
    convolution (RP-CPE), GELU, projection. Squeeze-and-excitation acts on its rC hidden channels.
    The paper gives no width, but states that the number of parameters does not change: with 2 C / r
    squeeze channels, its two matrices have 2 * rC * 2C/r = 4 C^2 weights, as many as the four
    projections of the attention.

    Args:
        channels: channels C.
        ffn_ratio: hidden channels of the FFN over ``channels``, r.
        drop_path: probability with which the branch is dropped for a sample.
        cpe: options of :class:`~mmvitattn.layers.RPCPE`.
    """

    def __init__(
        self, channels: int, ffn_ratio: float, drop_path: float = 0.0, cpe: Mapping = RP_CPE
    ) -> None:
        from torchvision.ops import SqueezeExcitation  # takes longer to import than PyTorch

        super().__init__()
        hidden = int(channels * ffn_ratio)
        gate = SqueezeExcitation(hidden, max(1, round(2 * channels / ffn_ratio)))
        for linear in (gate.fc1, gate.fc2):
            trunc_normal_(linear)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = FFN(channels, hidden, position=RPCPE(hidden, **cpe), gate=gate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        return x + self.drop_path(self.ffn(self.norm(x)))


def _overlapping(in_channels: int, channels: int, stride: int) -> ConvEmbed:
    """The paper's embedding: kernel 7, stride 4, padding 3, or kernel 3, stride 2, padding 1."""
    return ConvEmbed(in_channels, channels, 2 * stride - 1, stride, padding=stride - 1)


def _patches(in_channels: int, channels: int, stride: int) -> ConvEmbed:
    embed = PatchEmbed(in_channels, channels, kernel_size=stride, stride=stride)
    he_normal_fan_out_(embed.conv)
    return embed


Embed = Callable[[int, int, int], ConvEmbed]  # arguments: input channels, channels, stride
EMBEDS: dict[str, Embed] = {'conv': _overlapping, 'patch': _patches}
DOWNSAMPLES: dict[str | None, Embed | None] = {'conv': _overlapping, 'patch': _patches, None: None}
LAYOUT = {'H': LinGloBlock, 'C': LinGloConvBlock}


def make_downsample(embed: Embed | None, in_channels: int, channels: int) -> nn.Sequential:
    """LayerNorm, then an embedding of stride 2, between two stages; the identity for ``None``.

    Raises:
        OptionError: for ``None`` between stages with different channels.
    """
    if embed is not None:
        norm = nn.LayerNorm(in_channels, eps=NORM_EPS)
        return nn.Sequential(norm, embed(in_channels, channels, 2))
    if in_channels != channels:
        raise OptionError(
            f'LinGlo: downsample=None needs equal channels in all stages, got {in_channels} and '
            f'{channels}'
        )
    return nn.Sequential()


def cpe_options(position: str | Mapping | None) -> Mapping | None:
    """Options of RPCPE for a key of ``POSITIONS`` or a mapping; ``None`` for no RPCPE.

    Raises:
        OptionError: for unknown names or options.
    """
    if not isinstance(position, Mapping):
        return choose('LinGlo', 'position', position, POSITIONS)
    if not set(position) <= set(CPE_OPTIONS):
        raise OptionError(
            f'LinGlo: position={dict(position)} may set only {", ".join(CPE_OPTIONS)}'
        )
    return {**RP_CPE, **position}


def check_layout(layout: str | None, num_stages: int, cpe: Mapping | None) -> str:
    """One letter of ``LAYOUT`` for each stage; ``None`` means hybrid stages.

    Raises:
        OptionError: for unknown letters, a wrong number of them, or 'C' without RPCPE.
    """
    if layout is None:
        return 'H' * num_stages
    if len(layout) != num_stages or not set(layout) <= set(LAYOUT):
        raise OptionError(
            f'LinGlo: layout={layout!r} must have one letter for each of {num_stages} stages: '
            'H (hybrid), C (convolutional)'
        )
    if 'C' in layout and cpe is None:
        raise OptionError(
            f'LinGlo: layout={layout!r} needs a position encoding by convolutions, which is part '
            "of its convolutional blocks, e.g. position='rp_cpe'"
        )
    return layout

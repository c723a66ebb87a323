"""Convolutional embeddings and projections ("CvT: Introducing Convolutions to Vision Transformers",
sections 3.1 and 3.2)."""

import torch
from torch import Tensor, nn

from ..ops.linear import linear
from .global_attention import GlobalAttention
from .patch_embed import PatchEmbed


class ConvTokenEmbed(PatchEmbed):
    """CvT's convolutional token embedding: overlapping patches, then a LayerNorm.

    CvT uses kernels of side 7 at stride 4. Here the side is ``max(7, 2 * stride - 1)``, so that
    patches overlap at any stride, with the smallest padding that gives ceil(n / stride) patches (2
    at stride 4, as in CvT).

    Args:
        in_channels: channels of the image.
        channels: channels of the embedding.
        stride: stride, in pixels.
        eps: epsilon of the norm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float = 1e-6) -> None:
        kernel_size = max(7, 2 * stride - 1)
        padding = (kernel_size - stride + 1) // 2
        super().__init__(in_channels, channels, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / stride), ceil(W / stride), C)."""
        return self.norm(super().forward(x))


class ConvProjection(nn.Module):
    """CvT's convolution before a linear projection: depth-wise 3 x 3 convolution, BatchNorm.

    Args:
        channels: channels C of input and output.
        stride: stride of the convolution.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), C)."""
        # On CPUs, torch 2.1 computes the gradients up to 15 times slower without contiguous().
        return self.norm(self.conv(x.permute(0, 3, 1, 2).contiguous())).permute(0, 2, 3, 1)


class ConvProjectionAttention(GlobalAttention):
    """Self-attention whose queries, keys and values are projected by convolutions, as in CvT.

    Each of the three has a :class:`ConvProjection` before its linear layer; those of keys and
    values have stride 2, as in CvT's published models, which leaves a quarter of the keys. The
    arguments are those of :class:`~mmvitattn.layers.GlobalAttention`.
    """

    def __init__(self, channels: int, num_heads: int, shared_kv: bool = False) -> None:
        super().__init__(channels, num_heads, shared_kv)
        self.conv_query = ConvProjection(channels)
        self.conv_key = ConvProjection(channels, stride=2)
        self.conv_value = ConvProjection(channels, stride=2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; keys and values have half the resolution of the queries."""
        weights, biases = self.key_value.weight.chunk(2), self.key_value.bias.chunk(2)
        key = linear(self.conv_key(x), weights[0], biases[0])
        value = linear(self.conv_value(x), weights[1], biases[1])
        return self.query(self.conv_query(x)), torch.cat([key, value], dim=-1)

"""Parts of QnA-ViT: stems, skip paths of the down-sampling blocks, and the block itself.

Maps are channels-last, (B, H, W, C). Padding is that of Flax's 'SAME': a stride of s gives
ceil(n / s) positions, and what is odd about the padding stands at the bottom and the right.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..layers import FFN, ConvEmbed
from ..layers.init import lecun_normal_
from ..ops.torch_api import is_exporting

NORM_EPS = 1e-6
FFN_RATIO = 4


class PatchStem(ConvEmbed):
    """4 x 4 patches by a convolution; a size that 4 does not divide is padded on both sides.

    Args:
        in_channels: channels of the image.
        channels: channels of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, kernel_size=4, stride=4, padding=0, bias=False)
        lecun_normal_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / 4), ceil(W / 4), C)."""
        bottom, right = -x.shape[1] % 4, -x.shape[2] % 4
        if is_exporting() or bottom or right:
            top, left = bottom // 2, right // 2
            x = F.pad(x, (0, 0, left, right - left, top, bottom - top))
        return super().forward(x)


class ResNetStem(ConvEmbed):
    """A 7 x 7 convolution, BatchNorm, GELU and 3 x 3 max-pooling, each of both with stride 2.

    Args:
        in_channels: channels of the image.
        channels: channels of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, kernel_size=7, stride=2, padding=0, bias=False)
        lecun_normal_(self.conv)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.GELU(approximate='tanh')
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / 4), ceil(W / 4), C)."""
        x = self.conv(_pad_for_stride_2(x, 7).permute(0, 3, 1, 2))
        x = self.activation(self.norm(x)).permute(0, 2, 3, 1)
        x = self.pool(_pad_for_stride_2(x, 3, value=float('-inf')).permute(0, 3, 1, 2))
        return x.permute(0, 2, 3, 1).contiguous()


class ConvSkip(ConvEmbed):
    """Every second position, through a 1 x 1 convolution.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        kernel_size: window side of the attention beside it; does not matter here.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, channels, kernel_size=1, stride=2, padding=0, bias=False)
        lecun_normal_(self.conv)


class AvgPoolSkip(ConvEmbed):
    """Average of the window around every second position, then a 1 x 1 convolution.

    As in the release, positions outside the map count as zeros.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        kernel_size: side of the window.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, channels, kernel_size=1, stride=1, padding=0, bias=False)
        lecun_normal_(self.conv)
        self.pool = nn.AvgPool2d(kernel_size, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / 2), ceil(W / 2), C)."""
        x = _pad_for_stride_2(x, self.pool.kernel_size)
        return super().forward(self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def _pad_for_stride_2(x: Tensor, kernel_size: int, value: float = 0.0) -> Tensor:
    """'SAME' padding of (B, H, W, C) for an odd kernel with stride 2."""
    if kernel_size == 1:
        return x
    after = kernel_size // 2
    top, left = after - 1 + x.shape[1] % 2, after - 1 + x.shape[2] % 2
    return F.pad(x, (0, 0, left, after, top, after), value=value)


class QnAViTBlock(nn.Module):
    """Pre-norm block: attention, then an FFN, each with a residual connection.

    With ``skip`` it is the down-sampling block: the skip path takes the block's raw input, and the
    attention branch is never dropped.

    Args:
        attention: module from (B, H, W, C_in) to (B, H', W', C).
        in_channels: channels C_in of the input.
        channels: channels C of the output.
        skip: module on the attention's skip path; ``None`` for the identity.
        drop_path: probability with which a branch is dropped for a sample.
        layer_scale: start value of a factor for each channel of each branch; ``None`` for none.
    """

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
        self.drop_path = StochasticDepth(drop_path, mode='row')
        for name in ('layer_scale1', 'layer_scale2'):
            scale = (
                None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
            )
            self.register_parameter(name, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, H', W', C)."""
        y = _scaled(self.attention(self.norm1(x)), self.layer_scale1)
        x = x + self.drop_path(y) if self.skip is None else self.skip(x) + y
        return x + self.drop_path(_scaled(self.ffn(self.norm2(x)), self.layer_scale2))


def _scaled(y: Tensor, scale: Tensor | None) -> Tensor:
    return y if scale is None else y * scale

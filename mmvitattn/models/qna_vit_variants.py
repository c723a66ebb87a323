"""Parts of QnA-ViT that no named architecture uses: ResNet's stem, an average-pooling skip.

Maps are channels-last, (B, H, W, C). Padding is that of Flax's 'SAME': a stride of s gives
ceil(n / s) positions, and an odd amount of padding has its extra row and column at the bottom and
the right.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ConvEmbed
from ..layers.init import lecun_normal_


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
        self.kernel_size = kernel_size
        self.pool = nn.AvgPool2d(kernel_size, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / 2), ceil(W / 2), C)."""
        x = _pad_for_stride_2(x, self.kernel_size)
        return super().forward(self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def _pad_for_stride_2(x: Tensor, kernel_size: int, value: float = 0.0) -> Tensor:
    """'SAME' padding of (B, H, W, C) for an odd kernel with stride 2."""
    if kernel_size == 1:
        return x
    after = kernel_size // 2
    top, left = after - 1 + x.shape[1] % 2, after - 1 + x.shape[2] % 2
    return F.pad(x, (0, 0, left, after, top, after), value=value)

"""Convolutional embeddings on channels-last maps."""

from torch import Tensor, nn

from .init import he_normal_fan_out_


class ConvEmbed(nn.Module):
    """Strided convolution on channels-last maps.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        stride: stride.
        padding: zero padding on each side.
        bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        he_normal_fan_out_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, H', W', C_out), contiguous."""
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y.contiguous()

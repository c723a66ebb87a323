"""Conditional position encodings: positions learned from zero-padded depth-wise convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .init import he_normal_fan_out_


class RPCPE(nn.Module):
    """Residual parallel conditional position encoding (LinGlo paper, section 3.2, figure 2b).

    ``z = t + sum_b BN_b(conv_b(t))`` with parallel depth-wise convolutions. The other forms of the
    paper's Table 6 are options: CPE (one branch, no skip), R-CPE (one branch, skip), P-CPE (several
    branches, no skip). Once trained, all of it is one depth-wise convolution with bias: whenever
    the BatchNorms use their running statistics it runs as such, and ``switch_to_deploy`` stores it
    so.

    Args:
        channels: channels C of input and output.
        num_branches: parallel branches.
        skip: whether the input is added.
        kernel_size: odd side of the kernels.

    Raises:
        ValueError: for an even kernel or less than one branch.
    """

    def __init__(
        self, channels: int, num_branches: int = 4, skip: bool = True, kernel_size: int = 3
    ) -> None:
        super().__init__()
        if num_branches < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f'RPCPE needs num_branches >= 1 and an odd kernel_size, '
                f'got num_branches={num_branches}, kernel_size={kernel_size}'
            )
        self.channels, self.skip, self.kernel_size = channels, skip, kernel_size
        self.convs = nn.ModuleList(self._depthwise(bias=False) for _ in range(num_branches))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_branches))
        self.reset_parameters()

    def _depthwise(self, bias: bool) -> nn.Conv2d:
        return nn.Conv2d(
            self.channels,
            self.channels,
            self.kernel_size,
            padding=self.kernel_size // 2,
            groups=self.channels,
            bias=bias,
        )

    def reset_parameters(self) -> None:
        """He normal (fan-out) for the convolutions, one and zero for the norms."""
        for conv in self.convs:
            he_normal_fan_out_(conv)
        for norm in self.norms:
            norm.reset_parameters()

    @property
    def deployed(self) -> bool:
        """Whether the branches have been folded into one convolution."""
        return hasattr(self, 'folded')

    def forward(self, x: Tensor) -> Tensor:
        """Encodes positions.

        Args:
            x: (B, C, H, W), any memory format (kept).

        Returns:
            Output of the same shape.
        """
        if self.deployed:
            return self.folded(x)
        if not any(norm.training for norm in self.norms):
            weight, bias = self.fold()
            return F.conv2d(x, weight, bias, padding=self.kernel_size // 2, groups=self.channels)
        branches = [norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True)]
        if self.skip:
            branches.append(x)
        return sum(branches[1:], start=branches[0])

    def fold(self) -> tuple[Tensor, Tensor]:
        """The convolution that equals all branches with their running statistics, and the skip.

        Returns:
            Depth-wise weight (C, 1, k, k) and bias (C,); differentiable.
        """
        weights, biases = [], []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            weights.append(conv.weight * scale[:, None, None, None])
            biases.append(norm.bias - norm.running_mean * scale)
        if self.skip:
            identity = torch.zeros_like(weights[0])
            identity[..., self.kernel_size // 2, self.kernel_size // 2] = 1
            weights.append(identity)
        return sum(weights[1:], start=weights[0]), sum(biases[1:], start=biases[0])

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Replaces the branches by the one convolution that they fold into; idempotent."""
        if self.deployed:
            return
        weight, bias = self.fold()
        folded = self._depthwise(bias=True).to(weight.device, weight.dtype)
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
        self.folded = folded
        del self.convs, self.norms

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'skip={self.skip}, deployed={self.deployed}'

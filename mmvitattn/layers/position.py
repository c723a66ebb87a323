"""Conditional position encodings by zero-padded depth-wise convolutions."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import branch_statistics, depthwise_conv2d
from .init import he_normal_fan_out_


class RPCPE(nn.Module):
    """Residual parallel conditional position encoding (LinGlo paper, section 3.2, figure 2b).

    ``z = t + sum_b BN_b(conv_b(t))`` with parallel depth-wise convolutions. The other forms of the
    paper's Table 6 are options: CPE (one branch, no skip), R-CPE (one branch, skip), P-CPE (several
    branches, no skip). For given statistics of the BatchNorms, all of them are one depth-wise
    convolution with bias and computed as such: in evaluation with the running statistics, in
    training wherever the batch's statistics can be computed without running the branches
    (:func:`mmvitattn.ops.branch_statistics`). ``switch_to_deploy`` stores this convolution.

    Args:
        channels: channels C of input and output.
        num_branches: parallel branches.
        skip: whether the input is added.
        kernel_size: odd side of the kernels.

    Raises:
        ValueError: for an even kernel or less than one branch.
    """

    convs: Any  # nn.ModuleList of nn.Conv2d
    norms: Any  # nn.ModuleList of nn.BatchNorm2d
    folded: nn.Conv2d

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
    def reach(self) -> int:
        """Radius of the receptive field in evaluation, in positions."""
        return self.kernel_size // 2

    @property
    def deployed(self) -> bool:
        """Whether the branches have been folded into one convolution."""
        return hasattr(self, 'folded')

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape and memory format."""
        if self.deployed:
            return self.folded(x)
        if not any(norm.training for norm in self.norms):
            return depthwise_conv2d(x, *self.fold())
        statistics = self._batch_statistics(x)
        if statistics is not None:
            return depthwise_conv2d(x, *self._fold(*statistics))
        return self.forward_branches(x)

    def forward_branches(self, x: Tensor) -> Tensor:
        """The definition, branch by branch; :meth:`forward` computes the same faster."""
        branches = [
            norm(depthwise_conv2d(x, conv.weight))
            for conv, norm in zip(self.convs, self.norms, strict=True)
        ]
        if self.skip:
            branches.append(x)
        return sum(branches[1:], start=branches[0])

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and variance (branches, C), if they can be computed without running the branches."""
        if self.kernel_size != 3 or not all(
            type(norm) is nn.BatchNorm2d and norm.training for norm in self.norms
        ):
            return None  # e.g. synchronised norms, whose statistics span several processes
        weights = torch.stack([conv.weight for conv in self.convs])
        statistics = branch_statistics(x, weights)
        if statistics is not None:
            self._update_running_statistics(*statistics, count=x.numel() // x.shape[1])
        return statistics

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, var: Tensor, count: int) -> None:
        """As in BatchNorm: exponential averages of the mean and of the unbiased variance."""
        for norm, branch_mean, branch_var in zip(self.norms, mean, var, strict=True):
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(branch_mean, norm.momentum)
            norm.running_var.lerp_(branch_var * (count / max(count - 1, 1)), norm.momentum)

    def fold(self) -> tuple[Tensor, Tensor]:
        """The convolution that equals all branches, with their running statistics, and the skip.

        Returns:
            Depth-wise weight (C, 1, k, k) and bias (C,); differentiable.
        """
        mean = torch.stack([norm.running_mean for norm in self.norms])
        return self._fold(mean, torch.stack([norm.running_var for norm in self.norms]))

    def _fold(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        gain = torch.stack([norm.weight for norm in self.norms])
        shift = torch.stack([norm.bias for norm in self.norms])
        weights = torch.stack([conv.weight for conv in self.convs])
        # The frozen norms of transformers' DETR have no eps; they use PyTorch's default.
        eps = getattr(self.norms[0], 'eps', 1e-5)
        scale = gain * torch.rsqrt(var + eps)  # (branches, C)
        weight = (weights * scale[..., None, None, None]).sum(0)
        if self.skip:
            identity = torch.zeros_like(weight)
            identity[..., self.kernel_size // 2, self.kernel_size // 2] = 1
            weight = weight + identity
        return weight, (shift - mean * scale).sum(0)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Replaces the branches by one equal convolution; idempotent."""
        if self.deployed:
            return
        weight, bias = self.fold()
        self.folded = self._depthwise(bias=True).to(weight.device, weight.dtype)
        self.folded.load_state_dict(dict(weight=weight, bias=bias))
        del self.convs, self.norms

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'skip={self.skip}, deployed={self.deployed}'

"""Stochastic depth."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples ("Deep Networks with Stochastic Depth").

    In training, each sample of the branch is set to 0 with probability ``p`` and otherwise divided
    by ``1 - p``; in evaluation it is the identity. Computes the same as
    ``torchvision.ops.StochasticDepth(p, mode='row')``, whose import takes longer than PyTorch's.

    Args:
        p: probability with which a sample is dropped, in [0, 1].
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f'the drop-path rate {p} must lie in [0, 1]')
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ...) to the same shape."""
        if not self.training or self.p == 0:
            return x
        kept = x.new_empty([x.shape[0]] + [1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        if self.p < 1:
            kept.div_(1 - self.p)
        return x * kept

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'p={self.p}'

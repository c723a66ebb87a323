"""Key-only attention as a layer (LinGlo paper, section 3.1)."""

import torch
from torch import Tensor, nn

from ..ops import key_only_attention, key_only_weights
from .init import trunc_normal_


class KeyOnlyAttention(nn.Module):
    """Global attention without queries, linear in the number of positions.

    Each head weights all positions by ``softmax(K saliency / sqrt(d))``. The weighted mean of the
    keys is the global context ``G``, which is mixed with every position: ``((G * V) U1 + K) U2``
    (LinGlo paper, equations 2 to 4).

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        bias: whether the four projections have a bias.

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``.

    Example:
        >>> attention = KeyOnlyAttention(64, num_heads=2)
        >>> attention(torch.rand(8, 56, 56, 64)).shape
        torch.Size([8, 56, 56, 64])
    """

    def __init__(self, channels: int, num_heads: int = 1, bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'num_heads={num_heads} must divide channels={channels}')
        self.channels, self.num_heads = channels, num_heads
        self.key = nn.Linear(channels, channels, bias=bias)
        self.value = nn.Linear(channels, channels, bias=bias)
        self.gate = nn.Linear(channels, channels, bias=bias)
        self.out = nn.Linear(channels, channels, bias=bias)
        self.saliency = nn.Parameter(torch.empty(num_heads, channels // num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal (std 0.02) for weights and saliency vectors, zero for biases."""
        for linear in (self.key, self.value, self.gate, self.out):
            trunc_normal_(linear)
        nn.init.trunc_normal_(self.saliency, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ..., C), with any number of position axes, to the same shape."""
        projections = (
            (linear.weight, linear.bias) for linear in (self.key, self.value, self.gate, self.out)
        )
        y = key_only_attention(x.flatten(1, -2), self.saliency, *projections)
        return y.unflatten(1, x.shape[1:-1]) if x.dim() != 3 else y

    def attention_weights(self, x: Tensor) -> Tensor:
        """Saliency map of each head for an input (B, ..., C).

        Returns:
            Weights of the positions in the global context, which sum to one, (B, h, ...).
        """
        key = (self.key.weight, self.key.bias)
        weights = key_only_weights(x.flatten(1, -2), self.saliency, key)
        return weights.unflatten(2, x.shape[1:-1])

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'channels={self.channels}, num_heads={self.num_heads}'

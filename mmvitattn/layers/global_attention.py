"""Multi-head self-attention over a whole map ("Attention Is All You Need", section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dispatch import is_exporting
from .init import trunc_normal_
from .linear import Linear
from .patch_embed import remainder


class AttentionProjections(nn.Module):
    """The linear layers of multi-head attention.

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        shared_kv: whether all heads share one key and one value of C / h channels.

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, num_heads: int, shared_kv: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'num_heads={num_heads} must divide channels={channels}')
        self.channels, self.num_heads, self.shared_kv = channels, num_heads, shared_kv
        kv_channels = channels // num_heads if shared_kv else channels
        self.query = Linear(channels, channels)
        self.key_value = Linear(channels, 2 * kv_channels)  # keys first
        self.out = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal (std 0.02) weights, zero biases."""
        for linear in (self.query, self.key_value, self.out):
            trunc_normal_(linear)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'channels={self.channels}, num_heads={self.num_heads}, shared_kv={self.shared_kv}'


class GlobalAttention(AttentionProjections):
    """Self-attention between all positions of a map; memory is linear in their number.

    Keys and values are projected for each head, or once for all heads (multi-query attention).

    Time is quadratic in the number of positions. ``kv_pool`` divides it by ``kv_pool ** 2``: keys
    and values are computed from averages over squares of positions. PVT reduces them by a strided
    convolution; the average has no weights, so models that were trained without it can use it. It
    is not part of SAG or its paper.

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        shared_kv: whether all heads share one key and one value of C / h channels.
        kv_pool: side of the averaged squares of positions; 1 for no average.

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``, or ``kv_pool`` is below 1.

    Example:
        >>> attention = GlobalAttention(64, num_heads=2)
        >>> attention(torch.rand(8, 56, 56, 64)).shape
        torch.Size([8, 56, 56, 64])
    """

    def __init__(
        self, channels: int, num_heads: int, shared_kv: bool = False, kv_pool: int = 1
    ) -> None:
        super().__init__(channels, num_heads, shared_kv)
        if kv_pool < 1:
            raise ValueError(f'kv_pool={kv_pool} must be at least 1')
        self.kv_pool = kv_pool

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        batch, dim = x.shape[0], self.channels // self.num_heads
        query, key_value = self.project(x)
        query = query.view(batch, -1, self.num_heads, dim)
        key_value = key_value.flatten(1, 2)
        if self.shared_kv:
            # One head with the queries of all heads: keys and values need not be repeated.
            query = query.flatten(1, 2)[:, None]
            key, value = key_value[:, None].chunk(2, dim=-1)
        else:
            query = query.transpose(1, 2)
            key, value = key_value.view(batch, -1, 2, self.num_heads, dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value)
        y = y[:, 0] if self.shared_kv else y.transpose(1, 2)
        # In two steps: torch.export cannot derive y.reshape(x.shape) for every size.
        return self.out(y.reshape(batch, -1, self.channels).view(x.shape))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projects (B, H, W, C) to queries of the same shape, and to keys followed by values.

        These have shape (B, H', W', 2C), or 2C / h channels if shared.
        """
        return self.query(x), self.key_value(self._pool(x))

    def _pool(self, x: Tensor) -> Tensor:
        if self.kv_pool == 1:
            return x
        # At the border, the average is over the positions inside the map.
        y = x.permute(0, 3, 1, 2)
        if is_exporting():  # torch.export cannot derive the size of ceil_mode
            bottom, right = (remainder(n, self.kv_pool) for n in y.shape[2:])
            y, inside = (F.pad(z, (0, right, 0, bottom)) for z in (y, torch.ones_like(y[:1, :1])))
            y = F.avg_pool2d(y, self.kv_pool) / F.avg_pool2d(inside, self.kv_pool)
        else:
            y = F.avg_pool2d(y, self.kv_pool, ceil_mode=True)
        return y.permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'{super().extra_repr()}, kv_pool={self.kv_pool}'

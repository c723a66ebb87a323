"""Unfold attention: every window is copied out of the map before it is attended to.

Each form comes in two layouts, of which now the one, now the other is faster: windows by
``F.unfold``, (B, C, k*k, N), or as copies of strided views, (B, H, W, k*k, C).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvitattn.layers import QnALayer
from mmvitattn.layers.global_attention import AttentionProjections
from mmvitattn.ops import learned_query_scores

NEVER = -1e30  # a score that no softmax sees; finite, so that no gradient is NaN


def windows_first(x: Tensor, kernel_size: int, fill: float = 0.0) -> Tensor:
    """Windows of a map (B, H, W, C) by ``F.unfold``, (B, C, k*k, H*W)."""
    reach, channels = kernel_size // 2, x.shape[-1]
    x = x.permute(0, 3, 1, 2)
    if fill:
        x = F.pad(x, (reach,) * 4, value=fill)
    columns = F.unfold(x, kernel_size, padding=0 if fill else reach)
    return columns.unflatten(1, (channels, -1))


def windows_last(x: Tensor, kernel_size: int, fill: float = 0.0) -> Tensor:
    """Windows of a map (B, H, W, C) as copies of a strided view, (B, H, W, k*k, C)."""
    reach = kernel_size // 2
    padded = F.pad(x, (0, 0, reach, reach, reach, reach), value=fill)
    view = padded.unfold(1, kernel_size, 1).unfold(2, kernel_size, 1)
    return view.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)


class UnfoldSelfAttention(AttentionProjections):
    """Stand-alone self-attention (SASA): a query, keys and values of each position.

    As in the paper's release, positions outside the map take part with zero keys and values.

    Args:
        channels: channels C.
        num_heads: heads h.
        kernel_size: odd side k of the window.
        channels_last: the layout of the windows.
    """

    def __init__(
        self, channels: int, num_heads: int, kernel_size: int, channels_last: bool
    ) -> None:
        super().__init__(channels, num_heads)
        self.kernel_size, self.channels_last = kernel_size, channels_last
        self.position_bias = nn.Parameter(torch.zeros(kernel_size**2, num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        heads, dim = self.num_heads, self.channels // self.num_heads
        query = self.query(x) * dim**-0.5
        key, value = self.key_value(x).chunk(2, dim=-1)
        if self.channels_last:
            key = windows_last(key, self.kernel_size).unflatten(-1, (heads, dim))
            scores = (query.unflatten(-1, (heads, dim))[:, :, :, None] * key).sum(-1)
            weights = (scores + self.position_bias).softmax(dim=3)
            value = windows_last(value, self.kernel_size).unflatten(-1, (heads, dim))
            return self.out((weights[..., None] * value).sum(3).flatten(-2))
        query = query.flatten(1, 2).mT.unflatten(1, (heads, dim))  # (B, h, d, N)
        key = windows_first(key, self.kernel_size).unflatten(1, (heads, dim))
        scores = (query[:, :, :, None] * key).sum(2)
        weights = (scores + self.position_bias.T[..., None]).softmax(dim=2)  # (B, h, k*k, N)
        value = windows_first(value, self.kernel_size).unflatten(1, (heads, dim))
        y = (weights[:, :, None] * value).sum(3).flatten(1, 2)
        return self.out(y.mT.unflatten(1, x.shape[1:3]))


class UnfoldLearnedQuery(QnALayer):
    """What :class:`~mmvitattn.layers.QnALayer` computes, by unfolding scores and values.

    Args:
        channels: channels C.
        num_heads: heads h.
        kernel_size: odd side k of the window.
        channels_last: the layout of the windows.
    """

    def __init__(
        self, channels: int, num_heads: int, kernel_size: int, channels_last: bool
    ) -> None:
        super().__init__(channels, num_heads, kernel_size)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        query = self.query.unflatten(-1, (self.num_heads, -1))
        scores = learned_query_scores(x, query, self.key.weight, self.normalize_queries)
        tables = (self.position_bias, self.attention_scale)
        value = self.value(x).unflatten(-1, query.shape[1:])
        y = unfold_learned_query(scores, value, *tables, self.kernel_size, self.channels_last)
        return self.out(y.flatten(-2))


def unfold_learned_query(
    scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor, kernel_size: int, last: bool
) -> Tensor:
    """:func:`mmvitattn.ops.learned_query_attention` of stride 1, by unfolding.

    Args:
        scores: (B, H, W, q, h).
        values: (B, H, W, h, d).
        bias: (k*k, q, h).
        scale: (k*k, q, h).
        kernel_size: odd side k of the window.
        last: whether the windows are copied channels-last.

    Returns:
        (B, H, W, h, d).
    """
    grid, queries = scores.shape[1:3], scores.shape[3:]
    heads = values.shape[3:]
    scores, values = scores.flatten(-2), values.flatten(-2)
    bias, scale = bias.flatten(1), scale.flatten(1)  # (k*k, q*h)
    if last:
        weights = (windows_last(scores, kernel_size, NEVER) + bias).softmax(dim=3) * scale
        weights = weights.unflatten(-1, queries).sum(-2).to(values.dtype)  # (B, H, W, k*k, h)
        value = windows_last(values, kernel_size).unflatten(-1, heads)
        return (weights[..., None] * value).sum(3)
    weights = (windows_first(scores, kernel_size, NEVER) + bias.T[..., None]).softmax(dim=2)
    weights = (weights * scale.T[..., None]).unflatten(1, queries).sum(1)
    weights = weights.to(values.dtype)  # (B, h, k*k, N); the scores are in float32
    value = windows_first(values, kernel_size).unflatten(1, heads)
    return (weights[:, :, None] * value).sum(3).permute(0, 3, 1, 2).unflatten(1, grid)

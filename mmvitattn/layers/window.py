"""Self-attention in non-overlapping windows (Swin Transformer, section 3.2, without the shift)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dispatch import is_exporting, is_traced
from .init import lecun_normal_
from .linear import Linear


class WindowAttention(nn.Module):
    """Multi-head self-attention inside w x w windows, with a relative position bias.

    The map may have any size: it is padded at the bottom and the right to a multiple of the window,
    and the padding is masked in the softmax.

    Args:
        channels: channels C of input and output.
        num_heads: heads h; must divide ``channels``.
        window_size: side w of the windows, in positions.
        bias: whether the projections have biases, as in Swin, but not in QnA-ViT.
        position_bias: 'relative_pos' learns a bias for each offset in a window and head; ``None``:
            no bias.

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``, ``window_size`` is less than 1,
            or for an unknown ``position_bias``.
    """

    offset_tables = ('position_bias',)
    relative_index: Tensor
    position_bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        bias: bool = False,
        position_bias: str | None = 'relative_pos',
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'num_heads={num_heads} must divide channels={channels}')
        if window_size < 1:
            raise ValueError(f'window_size={window_size} must be at least 1')
        if position_bias not in ('relative_pos', None):
            raise ValueError(f"position_bias={position_bias!r} must be 'relative_pos' or None")
        self.channels, self.num_heads, self.window_size = channels, num_heads, window_size
        self.qkv = Linear(channels, 3 * channels, bias=bias)
        self.out = Linear(channels, channels, bias=bias)
        table = torch.empty((2 * window_size - 1) ** 2, num_heads)
        self.position_bias = None if position_bias is None else nn.Parameter(table)
        index = relative_position_index(window_size)
        self.register_buffer('relative_index', index, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal projections, zero bias table."""
        lecun_normal_(self.qkv)
        lecun_normal_(self.out)
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        if is_exporting():
            return self._forward_for_export(x)
        batch, height, width, channels = x.shape
        w = self.window_size
        rows, columns = (height - 1) // w + 1, (width - 1) // w + 1
        pad_bottom, pad_right = rows * w - height, columns * w - width
        x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))
        windows = x.view(batch, rows, w, columns, w, channels).transpose(2, 3)
        # The 3d outputs of a head are contiguous, as in the official release.
        qkv = self.qkv(windows).reshape(
            batch * rows * columns, w * w, self.num_heads, 3 * channels // self.num_heads
        )
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)  # (B * windows, h, w*w, d)

        mask = self._bias(query)
        if is_traced() or pad_bottom or pad_right:
            mask = self._mask_padding(mask, height, width, rows, columns)  # (windows, h, w*w, w*w)
            mask = mask.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        mask = mask[None] if mask.dim() == 3 else mask
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

        y = y.transpose(1, 2).reshape(batch, rows, columns, w, w, channels).transpose(2, 3)
        y = y.reshape(batch, rows * w, columns * w, channels)
        if is_traced():  # strides of slices would give one graph for each kind of size
            for axis, size in ((1, height), (2, width)):
                y = y.index_select(axis, torch.arange(size, device=y.device))
        return self.out(y[:, :height, :width])

    def _mask_padding(
        self, bias: Tensor, height: int, width: int, rows: int, columns: int
    ) -> Tensor:
        """Sets the bias of padding to the smallest finite number, so that its weight is zero."""
        w = self.window_size
        outside_row = torch.arange(rows * w, device=bias.device) >= height
        outside_column = torch.arange(columns * w, device=bias.device) >= width
        outside = outside_row.view(rows, 1, w, 1) | outside_column.view(1, columns, 1, w)
        outside = outside.reshape(rows * columns, 1, 1, w * w)
        least = torch.full_like(bias[:1, :1, :1], torch.finfo(bias.dtype).min)
        return torch.where(outside, least, bias)

    def _bias(self, query: Tensor) -> Tensor:
        """The position bias, (h, w*w, w*w), or a zero."""
        if self.position_bias is None:
            return query.new_zeros(1, 1, 1)
        return self.position_bias[self.relative_index].permute(2, 0, 1).to(query.dtype)

    def _forward_for_export(self, x: Tensor) -> Tensor:
        """The same for a dynamic size.

        ``torch.export`` distinguishes sizes of 1 from others, for any axis of any tensor. The
        number of windows may be 1: their axis is always merged with others, and positions are put
        into windows and back by their indices.
        """
        batch, height, width, channels = x.shape
        w, h, area = self.window_size, self.num_heads, self.window_size**2
        rows, columns = (height + w - 1) // w, (width + w - 1) // w
        index = torch.arange(rows * columns * area, device=x.device)  # window by window
        window, inside = index // area, index % area
        window_row, window_column = _divmod(window, columns)
        row, column = window_row * w + inside // w, window_column * w + inside % w
        source = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
        qkv = self.qkv(x.flatten(1, 2).index_select(1, source))
        qkv = qkv.view(batch, -1, h, 3 * channels // h).transpose(1, 2).flatten()
        # (B * h * windows, 1, w*w, 3d), by way of two axes, which need no derivation
        qkv = qkv.view(-1, area * 3 * channels // h).view(-1, 1, area, 3 * channels // h)

        keys = (window * area)[:, None] + torch.arange(area, device=x.device)
        outside = ((row >= height) | (column >= width))[keys]  # (windows * w*w, w*w)
        bias = self._bias(qkv).expand(h, area, area).index_select(1, inside)
        least = torch.full_like(bias[:1, :1, :1], torch.finfo(bias.dtype).min)
        mask = torch.where(outside, least, bias).expand(batch, -1, -1, -1)
        mask = mask.flatten().view(-1, area * area).view(-1, 1, area, area)
        query, key, value = qkv.chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

        y = y.flatten().view(batch, h, -1, channels // h).transpose(1, 2).flatten(2)
        index = torch.arange(height * width, device=x.device)
        row, column = _divmod(index, width)
        window, inside = row // w * columns + column // w, row % w * w + column % w
        return self.out(y.index_select(1, window * area + inside).view(x.shape))

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return (
            f'channels={self.channels}, num_heads={self.num_heads}, window_size={self.window_size}'
        )


def _divmod(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder; ``torch.onnx`` has no remainder for a size that is dynamic."""
    quotient = index // size
    return quotient, index - quotient * size


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window of side w, as in Swin.

    Returns:
        (w*w, w*w), query by key: index of the offset query - key, row by row from (1 - w, 1 - w).
    """
    axis = torch.arange(window_size)
    offset = axis[:, None] - axis + window_size - 1  # (w, w), from 0 to 2w - 2
    rows = offset[:, None, :, None] * (2 * window_size - 1)
    return (rows + offset[None, :, None, :]).flatten(0, 1).flatten(1)

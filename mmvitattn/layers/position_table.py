"""Learned absolute position embeddings, resized to the size of the map."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dispatch import is_traced, precise_dtype


class PositionTable(nn.Module):
    """Adds a learned vector to each position of a map.

    For a map of another size than its own, the table is resized bicubically.

    Args:
        grid_size: rows and columns of the table.
        channels: channels C of the map.
        num_variants: number T of variants of the map, each with its own table; ``None`` for one
            table, for a map without variants or shared by all variants.
    """

    grid_tables = ('table',)

    def __init__(
        self, grid_size: Sequence[int], channels: int, num_variants: int | None = None
    ) -> None:
        super().__init__()
        variants = () if num_variants is None else (num_variants,)
        self.table = nn.Parameter(torch.empty(*variants, *grid_size, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal, std 0.02."""
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Adds positions to a map (B, H, W, C), or to variants (T, B, H, W, C)."""
        table = resize_table(self.table, x.shape[-3:-1])
        return x + (table if table.dim() == 3 else table[:, None])

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f'shape={tuple(self.table.shape)}'


def resize_table(table: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a table over a grid bicubically, with antialiasing if it becomes smaller.

    Args:
        table: (H, W, C), or (T, H, W, C) for several tables.
        size: new rows and columns.

    Returns:
        (..., H', W', C) in the table's dtype; the table itself if it already has this size.
    """
    if is_traced():
        return _resize_by_products(table, size)
    if table.shape[-3:-1] == tuple(size):
        return table
    maps = table if table.dim() == 4 else table[None]
    # Not all devices have a kernel for half precision.
    maps = maps.permute(0, 3, 1, 2).to(precise_dtype(table))
    maps = F.interpolate(maps, list(size), mode='bicubic', align_corners=False, antialias=True)
    return maps.permute(0, 2, 3, 1).to(table.dtype).reshape(*table.shape[:-3], *size, -1)


def _resize_by_products(table: Tensor, size: Sequence[int]) -> Tensor:
    """The same by two matrix products, which can be traced for a variable size."""
    # Not in a loop, which torch.compile of torch 2.1 cannot trace.
    rows = _resampling(table.shape[-3], size[0], table)
    columns = _resampling(table.shape[-2], size[1], table)
    tables = table.to(rows.dtype).reshape(-1, *table.shape[-3:]).movedim(0, 2)  # (H, W, T, C)
    # torch.export cannot derive reshapes of axes that have a new size: only others are merged.
    y = (rows @ tables.flatten(1)).view(size[0], *tables.shape[1:]).flatten(2)  # (H', W, T * C)
    y = torch.bmm(columns.expand(size[0], -1, -1), y)  # (H', W', T * C)
    y = y.view(*size, *tables.shape[2:]).movedim(2, 0).to(table.dtype)
    return y if table.dim() == 4 else y[0]


def _resampling(old: int, new: int, table: Tensor) -> Tensor:
    """Weights (new, old) of antialiased bicubic resampling on one axis."""
    options: dict[str, Any] = dict(device=table.device, dtype=precise_dtype(table))
    scale = torch.full((1,), old, **options) / torch.ones(new, **options).sum()
    centres = (torch.arange(new, **options) + 0.5) * scale
    distance = (torch.arange(old, **options) + 0.5 - centres[:, None]) / scale.clamp(min=1)
    x = distance.abs().clamp(max=2)
    a = -0.5  # Keys' cubic convolution, and the antialiased kernel of PyTorch and Pillow
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    weights = torch.where(x < 1, near, far)
    return weights / weights.sum(dim=1, keepdim=True)

"""Tables of a checkpoint, resized to the windows and image sizes of the model that loads them.

A layer names its tables in ``grid_tables``, (..., H, W, C) over the positions of a map, or in
``offset_tables``, (n * n, ...) over the offsets of a window, row by row.
"""

import math
import re
from collections.abc import MutableMapping

from torch import Tensor, nn

from .position_table import resize_table


def resize_tables(
    model: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str = ''
) -> str:
    """Resizes the tables of a state dict that belong to other windows or images, in place.

    The resizing is bicubic, as in the official release of QnA-ViT. Tables of equal size stay as
    they are, and so do those that differ from the model's in more than the size.

    Args:
        model: the model that will load the state dict.
        state_dict: its weights.
        prefix: prefix of the model's parameters in the state dict.

    Returns:
        What was resized, in words; empty if nothing was.
    """
    resized: dict[str, None] = {}
    for path, module in model.named_modules(prefix=prefix.removesuffix('.')):
        for kind, resize in (('grid', _resize_grid), ('offset', _resize_offsets)):
            for name in getattr(module, f'{kind}_tables', ()):
                key, own = f'{path}.{name}'.removeprefix('.'), getattr(module, name, None)
                if own is None or key not in state_dict or state_dict[key].shape == own.shape:
                    continue
                table = resize(state_dict[key], own)
                if table is None:
                    continue
                blocks = re.sub(r'(stages\.\d+)\.\d+', r'\1.*', key)
                resized[f'{blocks} {_shape(state_dict[key])} -> {_shape(table)}'] = None
                state_dict[key] = table
    return ', '.join(resized)


def _resize_grid(table: Tensor, own: Tensor) -> Tensor | None:
    """The table with the rows and columns of ``own``; ``None`` if other axes differ."""
    shapes = table.shape, own.shape
    if any(len(shape) < 3 or 0 in shape for shape in shapes):
        return None
    if len({(*shape[:-3], shape[-1]) for shape in shapes}) > 1:
        return None
    return resize_table(table, own.shape[-3:-1])


def _resize_offsets(table: Tensor, own: Tensor) -> Tensor | None:
    """The table over the offsets of ``own``; ``None`` if other axes differ.

    The sides are odd. One row for all offsets is not a table over them.
    """
    sides = [math.isqrt(len(t)) if t.dim() > 1 else 0 for t in (table, own)]
    squares = all(
        n > 1 and n % 2 and n**2 == len(t) for n, t in zip(sides, (table, own), strict=True)
    )
    if not squares or table.shape[1:] != own.shape[1:]:
        return None
    old, new = ((n, n) for n in sides)
    return resize_table(table.flatten(1).unflatten(0, old), new).reshape(own.shape)


def _shape(table: Tensor) -> str:
    return ' x '.join(map(str, table.shape))

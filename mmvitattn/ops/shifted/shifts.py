"""Shifts of an image: their checks, and translation with reflection at the borders."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BORDERS = ('extend', 'roll')
Shifts = Sequence[tuple[int, int]]


def check_shifts(name: str, shifts: Shifts, border: str) -> None:
    """Checks shifts.

    Args:
        name: the function or class that takes them, for the error message.
        shifts: pairs of pixels (down, right).
        border: 'extend' or 'roll'.

    Raises:
        ValueError: for an unknown border or shifts that it does not support.
    """
    if border not in BORDERS:
        raise ValueError(f'{name}: border is one of {BORDERS}, got {border!r}')
    if not shifts or any(len(shift) != 2 for shift in shifts):
        raise ValueError(f'{name}: shifts must be pairs (down, right), got {shifts}')
    if border == 'extend' and any(pixels < 0 for shift in shifts for pixels in shift):
        raise ValueError(
            f"{name}: border 'extend' shifts only down and right, use 'roll' for {shifts}"
        )


def translate(image: Tensor, shifts: Shifts) -> Tensor:
    """Translates an image, continued by its reflection (SAG, section 4.1).

    Pixel (y, x) of a copy is pixel (y - down, x - right) of the image. The image is mirrored at its
    outermost pixels, which are not repeated.

    Args:
        image: (B, H, W, C).
        shifts: T pairs of pixels (down, right); negative ones (up, left).

    Returns:
        The translated copies, (T, B, H, W, C).

    Raises:
        ValueError: for shifts that are not pairs, or as large as the image, which are farther than
            its reflection reaches.
    """
    check_shifts('translate', shifts, 'roll')
    height, width = image.shape[1:3]
    down, right = [y for y, _ in shifts], [x for _, x in shifts]
    above, below = max(0, *down), max(0, -min(down))
    before, behind = max(0, *right), max(0, -min(right))
    if max(above, below) >= height or max(before, behind) >= width:
        raise ValueError(
            f'translate: reflection needs an image larger than its shifts, got '
            f'{height} x {width} pixels and shifts {tuple(shifts)}; give a larger image'
        )
    canvas = F.pad(image.permute(0, 3, 1, 2), (before, behind, above, below), mode='reflect')
    canvas = canvas.permute(0, 2, 3, 1)
    return torch.stack(
        [canvas[:, above - y :, before - x :][:, :height, :width] for y, x in shifts]
    )

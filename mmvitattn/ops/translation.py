"""Translations of an image with reflection at its borders (SAG, section 4.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shifted import Shifts, check_shifts


def translate(image: Tensor, shifts: Shifts) -> Tensor:
    """Translates an image; what comes in from outside is its reflection.

    Pixel (y, x) of a copy is pixel (y - down, x - right) of the image. The image is mirrored at its
    outermost pixels, which are not repeated.

    Args:
        image: (B, H, W, C).
        shifts: T pairs of pixels (down, right); negative ones (up, left).

    Returns:
        The translated copies, (T, B, H, W, C).

    Raises:
        ValueError: for shifts that are no pairs, or as large as the image, whose reflection ends
            there.
    """
    check_shifts('translate', shifts, 'roll')
    height, width = image.shape[1:3]
    down, right = [y for y, _ in shifts], [x for _, x in shifts]
    above, below = max(0, *down), max(0, -min(down))
    before, behind = max(0, *right), max(0, -min(right))
    if max(above, below) >= height or max(before, behind) >= width:
        raise ValueError(
            f'translate: reflection needs an image with more pixels than its shifts have, got '
            f'{height} x {width} pixels and shifts {tuple(shifts)}; give a larger image'
        )
    canvas = F.pad(image.permute(0, 3, 1, 2), (before, behind, above, below), mode='reflect')
    canvas = canvas.permute(0, 2, 3, 1)
    return torch.stack(
        [canvas[:, above - y :, before - x :][:, :height, :width] for y, x in shifts]
    )

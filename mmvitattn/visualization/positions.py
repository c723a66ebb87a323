"""Positions in an image whose attention windows are drawn."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..errors import UsageError

Position = tuple[float, float]  # x, y in pixels
DEFAULT_POSITIONS = 3


def default_positions(picture: np.ndarray) -> list[Position]:
    """At most three strong corners, far from each other, or the centre if there are none.

    Args:
        picture: RGB, (H, W, 3).
    """
    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    inner = np.zeros_like(grey)  # mask without the border
    inner[height // 8 : height - height // 8, width // 8 : width - width // 8] = 1
    corners = cv2.goodFeaturesToTrack(
        grey, DEFAULT_POSITIONS, 0.05, min(height, width) / 4, mask=inner, blockSize=7
    )
    if corners is None:
        return [(width / 2, height / 2)]
    return sorted((float(x), float(y)) for x, y in corners[:, 0])


def read_positions(texts: Sequence[str], width: int, height: int) -> list[Position]:
    """Parses positions 'X,Y' in a picture of ``width`` x ``height`` pixels.

    Raises:
        UsageError: if one is malformed or lies outside the picture.
    """
    positions = []
    for text in texts:
        try:
            x, y = map(float, text.split(','))
        except ValueError:
            raise UsageError(f'--positions {text}: give X,Y in pixels, e.g. 120,80') from None
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f'--positions {text}: outside the picture of {width} x {height}')
        positions.append((x, y))
    return positions


def to_network(position: Position, sample: Any, size: Sequence[int]) -> Position:
    """Maps a position from the original picture to the network's input, scaled and maybe cropped.

    Args:
        position: (x, y) in pixels of the original picture.
        sample: the test pipeline's data sample, with ``ori_shape`` and ``scale_factor``.
        size: height and width of the network's input, without padding.

    Returns:
        (x, y) in pixels of the network's input.

    Raises:
        UsageError: if the pipeline crops the position away.
    """
    scale, original = sample.metainfo.get('scale_factor', (1, 1)), sample.metainfo['ori_shape']
    moved = []
    for value, factor, old, new in zip(position, scale, original[1::-1], size[::-1], strict=True):
        cut = max(0.0, (old * factor - new) / 2)  # test pipelines crop the centre
        moved.append((value + 0.5) * factor - cut)
    if not (0 <= moved[0] <= size[1] and 0 <= moved[1] <= size[0]):
        x, y = position
        raise UsageError(f'--positions {x:g},{y:g}: the test pipeline crops this position away')
    return moved[0], moved[1]

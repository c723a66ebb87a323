"""The picture that attention is drawn over, and where the positions of a map lie on it."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from torch import nn

from ..layers import ShiftedPatchEmbed

PANEL = 1.75  # side of a panel in inches
SMALL, NORMAL = 7.5, 9  # font sizes


class Scene(NamedTuple):
    """What the network saw, and the words for the titles."""

    picture: np.ndarray  # RGB (H, W, 3), uint8, without padding
    caption: str  # config and weights

    @property
    def grey(self) -> np.ndarray:
        """Grey picture, light enough to lie under colours, (H, W, 3), uint8."""
        grey = cv2.cvtColor(self.picture, cv2.COLOR_RGB2GRAY)
        return np.repeat((96 + grey * 0.6).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)

    @property
    def aspect(self) -> float:
        """Height over width."""
        return self.picture.shape[0] / self.picture.shape[1]


class Grid(NamedTuple):
    """Where a map's positions lie: their centres, in pixels of the picture."""

    step: int
    top: float  # centre of the first row
    left: float

    def extent(self, rows: int, columns: int) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of a map, as matplotlib's ``imshow`` takes them."""
        half = self.step / 2
        right = self.left + self.step * (columns - 1) + half
        bottom = self.top + self.step * (rows - 1) + half
        return self.left - half, right, bottom, self.top - half

    def nearest(self, x: float, y: float, rows: int, columns: int) -> tuple[int, int]:
        """Row and column of the position nearest to a pixel."""
        row, column = round((y - self.top) / self.step), round((x - self.left) / self.step)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """Centre (x, y) of a position."""
        return self.left + self.step * column, self.top + self.step * row


def grid_of(backbone: nn.Module, stage: int, image_size: Sequence[int]) -> Grid:
    """Where the positions of a stage's map lie.

    Down-samplings are centred on every second position, so the stem alone sets the offset.

    Args:
        backbone: a backbone of this package.
        stage: from 1.
        image_size: height and width of the network's input, in pixels.

    Returns:
        The grid.
    """
    stem = backbone.stem[0] if isinstance(backbone.stem, nn.Sequential) else backbone.stem
    if isinstance(stem, ShiftedPatchEmbed):
        kernel, stride, padding = stem.weight.shape[-1], stem.stride, stem.padding
        before = (0, 0)  # it pads on the right and the bottom
    else:
        (kernel, _), (stride, _) = stem.conv.kernel_size, stem.conv.stride
        padding = stem.conv.padding[0]
        # QnA-ViT's stem pads what its patches do not divide on both sides.
        before = [(-n % stride) // 2 if kernel == stride else 0 for n in image_size]
    top, left = (kernel / 2 - padding - n for n in before)
    return Grid(stride * 2 ** (stage - 1), top, left)


def show(ax: Axes, picture: np.ndarray) -> None:
    """Draws a picture in its pixels' coordinates, without axes."""
    height, width = picture.shape[:2]
    ax.imshow(picture, extent=(0, width, height, 0), interpolation='nearest')
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_axis_off()

"""The image that attention is drawn over, and what all figures share."""

from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SMALL, NORMAL = 7.5, 9  # font sizes
TINY = 1e-12


class Scene(NamedTuple):
    """The image that the network received, and a caption for the figures."""

    picture: np.ndarray  # RGB (H, W, 3), uint8, without padding
    caption: str  # config and weights

    @property
    def grey(self) -> np.ndarray:
        """The image in light grey, as background of colours, (H, W, 3), uint8."""
        grey = cv2.cvtColor(self.picture, cv2.COLOR_RGB2GRAY)
        return np.repeat((96 + grey * 0.6).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)

    @property
    def aspect(self) -> float:
        """Height over width."""
        return self.picture.shape[0] / self.picture.shape[1]

    def figure(self, title: str, size: tuple[float, float]) -> Figure:
        """An empty figure of ``size`` (width, height) in inches, with title and caption."""
        figure = Figure(figsize=size, layout='constrained')
        figure.suptitle(f'{title}\n{self.caption}', fontsize=NORMAL + 1)
        return figure


def show(ax: Axes, picture: np.ndarray) -> None:
    """Draws a picture (H, W, 3) in pixel coordinates, which later drawings do not change."""
    height, width = picture.shape[:2]
    ax.imshow(picture, extent=(0, width, height, 0), interpolation='nearest')
    ax.autoscale(False)
    ax.set_axis_off()

"""Learned-query attention: the effective weights of single windows, drawn where they lie.

Weights are drawn on the scale of each head: the values that they multiply have one of their own.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from matplotlib import cm, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .capture import CapturedLayer
from .positions import Position
from .scene import NORMAL, SMALL, Grid, Scene, show

GridOf = Callable[[int], Grid]

STRENGTHS = 'YlOrRd'
COLOURS = 'RdBu_r'  # blue for negative, red for positive; safe for the colour-blind
MARK = '#00e5ff'
ACROSS, DOWN, BETWEEN = 1.1, 1.3, 0.3  # distances of panels, rows, positions, in panels
PANEL = 0.78  # side of a panel in inches
PICTURE = 3.0  # width of the picture in inches
TINY = 1e-12
FEW, MANY = 8, 16  # panels in a row


class Windows:
    """Windows of one layer nearest to some positions.

    Args:
        layer: a learned-query layer.
        positions: (x, y) in pixels of the network's picture.
        grid_of: where the positions of a stage lie.
    """

    def __init__(
        self, layer: CapturedLayer, positions: Sequence[Position], grid_of: GridOf
    ) -> None:
        outputs = grid_of(layer.stage)
        inputs = grid_of(layer.stage - 1 if layer.block is None else layer.stage)
        self.layer, self.size, self.step = layer, layer.layer.kernel_size, inputs.step
        weights = layer.weights()[0].numpy()  # (H', W', k*k, h)
        cells = [outputs.nearest(*position, *weights.shape[:2]) for position in positions]
        self.centres = [outputs.centre(*cell) for cell in cells]
        chosen = np.stack([weights[cell] for cell in cells])  # (n, k*k, h)
        chosen = chosen / np.abs(chosen).max(axis=(0, 1)).clip(min=TINY)
        self.weights = np.moveaxis(chosen, -1, 1).reshape(len(cells), -1, self.size, self.size)

    @property
    def reach(self) -> float:
        """Half the side of a window, in pixels."""
        return self.size * self.step / 2


def draw_windows(
    scene: Scene, layer: CapturedLayer, positions: Sequence[Position], grid_of: GridOf
) -> Figure:
    """Weights of the windows nearest to some positions: a panel for each head.

    Args:
        scene: the picture.
        layer: a learned-query layer.
        positions: (x, y) in pixels of the network's picture.
        grid_of: where the positions of a stage lie.

    Returns:
        The figure.
    """
    windows = Windows(layer, positions, grid_of)
    heads, size = windows.weights.shape[1], windows.size
    columns = min(heads, FEW if heads <= 4 * FEW else MANY)
    rows = -(-heads // columns)
    figure, left, right = _figure(
        scene,
        f'QnA-ViT: effective weights of {size} × {size} windows, {layer.title}',
        (columns, rows * len(positions), len(positions)),
    )
    _draw_places(left, scene, windows.centres, windows.reach)
    norm = colors.Normalize(-1, 1)
    for i, maps in enumerate(windows.weights):
        top = i * (rows * DOWN + BETWEEN)
        crop = _crop(scene.picture, windows.centres[i], windows.reach + windows.step)
        for head, weights in enumerate(maps):
            place = (head % columns * ACROSS, top + head // columns * DOWN)
            _draw_panel(right, crop, weights, place, (norm, COLOURS), f'head {head + 1}')
        _number(right, i, top + (rows * DOWN - 0.3) / 2)
    _colour_bar(figure, right, (norm, COLOURS), "weight of a value / the head's largest here")
    return figure


def draw_overview(
    scene: Scene, layers: Sequence[CapturedLayer], positions: Sequence[Position], grid_of: GridOf
) -> Figure:
    """How much each value in a window counts, over all heads: a column for each layer.

    Args:
        scene: the picture.
        layers: learned-query layers.
        positions: (x, y) in pixels of the network's picture.
        grid_of: where the positions of a stage lie.

    Returns:
        The figure.
    """
    figure, left, right = _figure(
        scene,
        'QnA-ViT: weights in windows, mean of their absolute values over the heads',
        (len(layers), len(positions), len(positions)),
    )
    scale = (colors.Normalize(0, 1), STRENGTHS)
    for column, layer in enumerate(layers):
        windows = Windows(layer, positions, grid_of)
        if column == 0:
            _draw_places(left, scene, windows.centres, windows.reach)
        strengths = np.abs(windows.weights).mean(axis=1)
        for i, strength in enumerate(strengths / strengths.max()):
            crop = _crop(scene.picture, windows.centres[i], windows.reach + windows.step)
            place = (column * ACROSS, i * (DOWN + BETWEEN))
            title = layer.title.replace('down-sampling to', 'to').replace(', ', '\n')
            _draw_panel(right, crop, strength, place, scale, '' if i else title)
    for i in range(len(positions)):
        _number(right, i, i * (DOWN + BETWEEN) + 0.5)
    _colour_bar(figure, right, scale, "strength / the column's largest")
    return figure


def _figure(scene: Scene, title: str, panels: tuple[int, int, int]) -> tuple[Figure, Axes, Axes]:
    """Figure with axes for the picture and for so many columns and rows of panels."""
    columns, rows, positions = panels
    width = columns * ACROSS + 0.6
    height = rows * DOWN + (positions - 1) * BETWEEN + 0.2
    inches = (
        PICTURE + width * PANEL + 1.0,
        max(PICTURE * scene.aspect + 0.4, height * PANEL) + 0.6,
    )
    figure = Figure(figsize=inches, layout='constrained')
    figure.suptitle(f'{title}\n{scene.caption}', fontsize=NORMAL + 1)
    left, right = figure.subplots(1, 2, width_ratios=(PICTURE, width * PANEL + 1.0))
    right.set_xlim(-0.6, width - 0.6)
    right.set_ylim(height - 0.45, -0.45)
    right.set_aspect('equal', anchor='NW')
    right.set_axis_off()
    return figure, left, right


def _draw_places(ax: Axes, scene: Scene, centres: Sequence[Position], reach: float) -> None:
    show(ax, scene.picture)
    ax.set_anchor('N')
    for i, (x, y) in enumerate(centres):
        corner = (x - reach, y - reach)
        for colour, width in (('black', 3), (MARK, 1.5)):
            square = Rectangle(corner, 2 * reach, 2 * reach, fill=False, color=colour, lw=width)
            ax.add_patch(square)
        ax.annotate(
            str(i + 1), corner, (-2, 2), textcoords='offset points', ha='right', va='bottom',
            fontsize=9, color='black', bbox=dict(boxstyle='circle,pad=0.15', fc=MARK, lw=0),
        )  # fmt: skip


def _crop(picture: np.ndarray, centre: Position, reach: float) -> np.ndarray:
    """Grey square around a centre, white outside the picture, (2 * reach, 2 * reach)."""
    grey = 255 - (255 - cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) * 0.7
    border = int(reach) + 1
    padded = np.pad(grey.astype(np.uint8), border, constant_values=255)
    left, top = (round(c - reach) + border for c in centre)
    side = round(2 * reach)
    return padded[max(top, 0) : top + side, max(left, 0) : left + side]


Scale = tuple[colors.Normalize, str]  # of colours


def _draw_panel(
    ax: Axes,
    crop: np.ndarray,
    weights: np.ndarray,
    place: tuple[float, float],
    scale: Scale,
    title: str,
) -> None:
    """Weights (k, k) over the picture around their window; the weaker, the more transparent."""
    x, y = place
    ax.imshow(crop, extent=(x, x + 1, y + 1, y), cmap='gray', vmin=0, vmax=255)
    colours = cm.ScalarMappable(*scale).to_rgba(weights)
    colours[..., 3] = np.abs(weights) ** 0.6 * 0.95
    cell = 1 / (weights.shape[0] + 2)  # a margin of one position around the window
    window = (x + cell, x + 1 - cell, y + 1 - cell, y + cell)
    ax.imshow(colours, extent=window, interpolation='nearest')
    ax.add_patch(
        Rectangle((x + cell, y + cell), 1 - 2 * cell, 1 - 2 * cell, fill=False, color='0.3', lw=0.5)
    )
    ax.text(x + 0.5, y - 0.03, title, fontsize=7, ha='center', va='bottom', linespacing=1.0)


def _number(ax: Axes, position: int, y: float) -> None:
    ax.text(-0.3, y, str(position + 1), fontsize=9, ha='center', va='center',
            bbox=dict(boxstyle='circle,pad=0.15', fc=MARK, lw=0))  # fmt: skip


def _colour_bar(figure: Figure, ax: Axes, scale: Scale, label: str) -> None:
    bar = figure.colorbar(cm.ScalarMappable(*scale), ax=ax, shrink=0.8, aspect=25, pad=0.01)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)

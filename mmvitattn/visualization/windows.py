"""Learned-query attention: the effective weights of single windows, drawn at their place.

Weights are relative to the largest of their head, because the scale of a head's values is learned,
too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .capture import CapturedLayer
from .positions import Position
from .scene import NORMAL, SMALL, TINY, Scene, show

STRENGTH = ScalarMappable(Normalize(0, 1), 'YlOrRd')
SIGNED = ScalarMappable(Normalize(-1, 1), 'RdBu_r')  # blue: negative, red: positive
MARK = '#00e5ff'
ACROSS, DOWN, BETWEEN = 1.1, 1.35, 0.3  # distances of panels, rows, positions, in panels
PANEL = 0.78  # side of a panel in inches
PICTURE = 3.0  # width of the picture in inches
CROP = 96  # side of a panel's background in pixels
FEW, MANY = 8, 16  # panels in a row


class Window(NamedTuple):
    """A window of one layer: centre (x, y), half its side and distance of values, in pixels."""

    centre: Position
    reach: float
    step: float
    weights: np.ndarray  # (h, k, k)


Panel = tuple[str, Window, np.ndarray]  # title, window, what to draw of its weights, (k, k)


def windows_at(layer: CapturedLayer, positions: Sequence[Position]) -> list[Window]:
    """The windows nearest to some positions, with weights in [-1, 1].

    Args:
        layer: a learned-query layer.
        positions: (x, y) in pixels of the network's input.
    """
    k = layer.layer.kernel_size
    step = layer.grid.step / layer.layer.stride  # the window lies on the map before the layer
    weights = layer.weights()[0].numpy()  # (H', W', k*k, h)
    cells = [layer.grid.nearest(*position, *weights.shape[:2]) for position in positions]
    chosen = np.stack([weights[cell] for cell in cells])
    chosen = chosen / np.abs(chosen).max(axis=(0, 1)).clip(min=TINY)
    return [
        Window(layer.grid.centre(*cell), k * step / 2, step, w.T.reshape(-1, k, k))
        for cell, w in zip(cells, chosen, strict=True)
    ]


def draw_windows(scene: Scene, layer: CapturedLayer, positions: Sequence[Position]) -> Figure:
    """Weights of the windows of a layer nearest to some positions: one panel per head."""
    windows = windows_at(layer, positions)
    heads, k, _ = windows[0].weights.shape
    groups = [
        [(f'head {head}', window, weights) for head, weights in enumerate(window.weights, 1)]
        for window in windows
    ]
    title = f'QnA-ViT: effective weights of {k} × {k} windows, {layer.title}'
    label = "weight of a value / the head's largest here"
    return _draw(scene, title, groups, FEW if heads <= 4 * FEW else MANY, SIGNED, label)


def draw_windows_overview(
    scene: Scene, layers: Sequence[CapturedLayer], positions: Sequence[Position]
) -> Figure:
    """Strength of each value in a window, over all heads: one column per layer."""
    groups: list[list[Panel]] = [[] for _ in positions]
    for layer in layers:
        title = layer.title.replace('down-sampling to', 'to').replace(', ', '\n')
        windows = windows_at(layer, positions)
        strengths = np.abs([window.weights for window in windows]).mean(axis=1)
        strengths /= strengths.max()
        for group, window, strength in zip(groups, windows, strengths, strict=True):
            group.append((title, window, strength))
    title = 'QnA-ViT: weights in windows, mean of their absolute values over the heads'
    label = "strength / the layer's largest here"
    return _draw(scene, title, groups, len(layers), STRENGTH, label)


def _draw(
    scene: Scene,
    title: str,
    groups: Sequence[Sequence[Panel]],
    columns: int,
    scale: ScalarMappable,
    label: str,
) -> Figure:
    """The picture with its windows, and a group of panels for each position.

    All panels share axes, in which a panel has side 1: matplotlib would take minutes to lay out
    axes for each.
    """
    columns = min(columns, len(groups[0]))
    group_height = -(-len(groups[0]) // columns) * DOWN + BETWEEN
    width, height = columns * ACROSS + 0.6, len(groups) * group_height
    inches = width * PANEL + 1.0, max(PICTURE * scene.aspect + 0.4, height * PANEL) + 0.6
    figure = scene.figure(title, (PICTURE + inches[0], inches[1]))
    left, right = figure.subplots(1, 2, width_ratios=(PICTURE, inches[0]))
    show(left, scene.picture)
    left.set_anchor('N')
    right.set_xlim(-0.6, width - 0.6)
    right.set_ylim(height - BETWEEN - 0.35, -0.45)
    right.set_aspect('equal', anchor='NW')
    right.set_axis_off()
    for i, panels in enumerate(groups):
        (x, y), reach = panels[0][1].centre, panels[0][1].reach
        for colour, line_width in (('black', 3), (MARK, 1.5)):
            _square(left, x - reach, y - reach, 2 * reach, color=colour, lw=line_width)
        _number(left, i, (x - reach, y - reach), offset=(-6, 6))  # in points
        for j, panel in enumerate(panels):
            place = (j % columns * ACROSS, i * group_height + j // columns * DOWN)
            _draw_panel(right, scene, panel, scale, *place)
        _number(right, i, (-0.3, i * group_height + (group_height - BETWEEN - 0.35) / 2))
    bar = figure.colorbar(scale, ax=right, shrink=0.8, aspect=25, pad=0.01)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _draw_panel(
    ax: Axes, scene: Scene, panel: Panel, scale: ScalarMappable, left: float, top: float
) -> None:
    """Weights over the picture around their window; weaker ones are more transparent."""
    title, window, weights = panel
    (x, y), margin = window.centre, window.reach + window.step
    pixels = 2 * margin / CROP  # of the picture, per pixel of the background
    crop = cv2.warpAffine(
        scene.grey,
        np.array([[pixels, 0, x - margin], [0, pixels, y - margin]]),
        (CROP, CROP),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderValue=(255, 255, 255),
    )
    ax.imshow(crop, extent=(left, left + 1, top + 1, top))
    colours = scale.to_rgba(weights)
    colours[..., 3] = np.abs(weights) ** 0.6 * 0.95
    cell = 1 / (len(weights) + 2)
    extent = (left + cell, left + 1 - cell, top + 1 - cell, top + cell)
    ax.imshow(colours, extent=extent, interpolation='nearest')
    _square(ax, left + cell, top + cell, 1 - 2 * cell, color='0.3', lw=0.5)
    ax.text(left + 0.5, top - 0.03, title, fontsize=7, ha='center', va='bottom')


def _square(ax: Axes, left: float, top: float, side: float, **options: Any) -> None:
    ax.add_patch(Rectangle((left, top), side, side, fill=False, **options))


def _number(ax: Axes, i: int, place: Position, offset: tuple[float, float] = (0, 0)) -> None:
    ax.annotate(
        str(i + 1), place, offset, textcoords='offset points', ha='center', va='center',
        fontsize=NORMAL, bbox=dict(boxstyle='circle,pad=0.15', fc=MARK, lw=0),
    )  # fmt: skip

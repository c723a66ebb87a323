"""Key-only attention as heat maps: the weight of each position in the global context."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from .capture import CapturedLayer, Grid
from .scene import NORMAL, SMALL, TINY, Scene, show

PANEL = 1.75  # width of a panel in inches
Panel = tuple[str, Grid, Tensor]  # title, positions, weights (H, W)


def draw_saliency(scene: Scene, layers: Sequence[CapturedLayer]) -> Figure:
    """Saliency of each head in the layers of one stage: one row per layer, one column per head."""
    rows = {
        layer.title.split(', ')[1]: [
            (f'head {k}', layer.grid, weights) for k, weights in enumerate(layer.weights()[0], 1)
        ]
        for layer in layers
    }
    return _draw(scene, f'LinGlo: saliency of each head, stage {layers[0].stage}', rows)


def draw_saliency_overview(scene: Scene, layers: Sequence[CapturedLayer]) -> Figure:
    """Saliency in the last block of each stage, mean over the heads, in one row."""
    last = {layer.stage: layer for layer in layers}.values()
    row = [(layer.title, layer.grid, layer.weights()[0].mean(0)) for layer in last]
    return _draw(scene, 'LinGlo: saliency, mean over the heads', {'picture': row})


def _draw(scene: Scene, title: str, rows: dict[str, list[Panel]]) -> Figure:
    columns = 1 + len(next(iter(rows.values())))
    # A panel's title and the range below it take 0.5 inches.
    size = (PANEL * columns + 0.9, (PANEL * scene.aspect + 0.5) * len(rows) + 0.7)
    figure = scene.figure(title, size)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, panels) in zip(axes, rows.items(), strict=True):
        show(row[0], scene.picture)
        row[0].set_title(name, fontsize=NORMAL)
        for ax, panel in zip(row[1:], panels, strict=True):
            heat_map = _draw_panel(ax, scene, *panel)
    bar = figure.colorbar(heat_map, ax=axes, shrink=0.8, aspect=25, pad=0.01)
    bar.set_ticks([0, 1], labels=['least', 'most'], fontsize=SMALL)
    bar.set_label('weight, on the scale of each panel', fontsize=SMALL)
    return figure


def _draw_panel(ax: Axes, scene: Scene, title: str, grid: Grid, weights: Tensor) -> AxesImage:
    relative = (weights * weights.numel()).numpy()  # 1 for equal weights
    low, high = np.quantile(relative, (0.01, 0.99))  # otherwise single outliers hide the rest
    show(ax, scene.grey)
    heat_map = ax.imshow(
        ((relative - low) / max(high - low, TINY)).clip(0, 1),
        cmap='inferno',
        vmin=0,
        vmax=1,
        alpha=0.72,
        extent=grid.extent(*relative.shape),
        interpolation='nearest',
    )
    ax.set_title(title, fontsize=NORMAL)
    ax.text(
        0.5, -0.03, f'{relative.min():.2f} to {relative.max():.2f} × mean', transform=ax.transAxes,
        ha='center', va='top', fontsize=SMALL,
    )  # fmt: skip
    return heat_map

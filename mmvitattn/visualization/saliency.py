"""Key-only attention as heat maps: which positions the global context is made of."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .capture import CapturedLayer
from .scene import NORMAL, PANEL, SMALL, Grid, Scene, show

COLOURS = 'inferno'
TINY = 1e-12


def draw_saliency(
    scene: Scene, layers: Sequence[CapturedLayer], grid_of: Callable[[int], Grid]
) -> Figure:
    """Saliency of each head of some layers: a row for each layer, a column for each head.

    Args:
        scene: the picture.
        layers: layers of one stage.
        grid_of: where the positions of a stage lie.

    Returns:
        The figure.
    """
    rows = [(layer.title, layer.stage, layer.weights()[0]) for layer in layers]
    heads = len(rows[0][2])
    return _figure(
        scene,
        f'LinGlo: saliency of each head, stage {layers[0].stage}',
        [
            [(f'head {k + 1}', stage, weights[k]) for k in range(heads)]
            for _, stage, weights in rows
        ],
        [title.split(', ')[1] for title, _, _ in rows],
        grid_of,
    )


def draw_overview(
    scene: Scene, layers: Sequence[CapturedLayer], grid_of: Callable[[int], Grid]
) -> Figure:
    """Saliency in the last block of each stage, mean over the heads, in one row.

    Args:
        scene: the picture.
        layers: the layers, of all stages.
        grid_of: where the positions of a stage lie.

    Returns:
        The figure.
    """
    last = {layer.stage: layer for layer in layers}
    row = [(layer.title, stage, layer.weights()[0].mean(0)) for stage, layer in last.items()]
    return _figure(scene, 'LinGlo: saliency, mean over the heads', [row], [''], grid_of)


Panel = tuple[str, int, Tensor]  # title, stage, weights (H, W)


def _figure(
    scene: Scene,
    title: str,
    rows: Sequence[Sequence[Panel]],
    names: Sequence[str],
    grid_of: Callable[[int], Grid],
) -> Figure:
    columns = 1 + len(rows[0])
    # A panel's title and the range below it take 0.5 inches.
    size = (PANEL * columns + 0.9, (PANEL * scene.aspect + 0.5) * len(rows) + 0.7)
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(f'{title}\n{scene.caption}', fontsize=NORMAL + 1)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for y, (panels, name) in enumerate(zip(rows, names, strict=True)):
        show(axes[y, 0], scene.picture)
        axes[y, 0].set_title(name or 'picture', fontsize=NORMAL)
        for ax, panel in zip(axes[y, 1:], panels, strict=True):
            drawn = _draw_panel(ax, scene, panel, grid_of)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=25, pad=0.01)
    bar.set_ticks([0, 1], labels=['least', 'most'], fontsize=SMALL)
    bar.set_label('weight, on the scale of each panel', fontsize=SMALL)
    return figure


def _draw_panel(ax: Axes, scene: Scene, panel: Panel, grid_of: Callable[[int], Grid]):
    title, stage, weights = panel
    relative = (weights * weights.numel()).numpy()  # 1 where all positions count alike
    low, high = np.quantile(relative, (0.01, 0.99))  # single outliers would hide the rest
    show(ax, scene.grey)
    drawn = ax.imshow(
        ((relative - low) / max(high - low, TINY)).clip(0, 1),
        cmap=COLOURS,
        norm=colors.Normalize(0, 1),
        alpha=0.72,
        extent=grid_of(stage).extent(*relative.shape),
        interpolation='nearest',
    )
    height, width = scene.picture.shape[:2]
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_title(title, fontsize=NORMAL)
    ax.text(
        0.5, -0.03, f'{relative.min():.2f} to {relative.max():.2f} × mean', transform=ax.transAxes,
        ha='center', va='top', fontsize=SMALL,
    )  # fmt: skip
    return drawn

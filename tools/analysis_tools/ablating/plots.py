"""Loss and accuracy of the rows over the epochs, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from analyze_logs import COLOURS, FEW
from matplotlib import pyplot as plt

from .report import Result

LINES = ['-', '--', ':', '-.']  # for more rows than colours
PANELS = (
    ('loss', 'training loss, mean of the epoch', 'loss'),
    ('top1', 'validation accuracy', 'top-1 (%)'),
)


def draw(title: str, results: Sequence[Result], path: Path) -> None:
    """One line a row; with several seeds their mean, and their range as a band.

    Args:
        title: above the picture.
        results: the rows.
        path: a new PNG file.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout='constrained')
    handles = []
    for index, result in enumerate(results):
        style = dict(
            color=COLOURS[index % len(COLOURS)],
            linestyle=LINES[index // len(COLOURS) % len(LINES)],
        )
        for ax, (key, _, _) in zip(axes, PANELS, strict=True):
            values = np.array([getattr(run, key) for run in result.runs])
            epochs = np.arange(1, values.shape[1] + 1)
            marker = 'o' if len(epochs) <= FEW else None
            line = ax.plot(
                epochs, values.mean(0), marker=marker, markersize=4, label=result.row.name, **style
            )
            if len(values) > 1:
                low, high = values.min(0), values.max(0)
                ax.fill_between(epochs, low, high, color=style['color'], alpha=0.15, linewidth=0)
        handles += line
    for ax, (_, heading, unit) in zip(axes, PANELS, strict=True):
        ax.set_title(heading, fontsize=10)
        ax.set_xlabel('epoch', fontsize=9)
        ax.set_ylabel(unit, fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    columns = min(len(handles), 4)
    figure.legend(handles=handles, loc='outside lower center', ncols=columns, fontsize=9)
    with path.open('xb') as file:
        figure.savefig(file, format='png', dpi=110)
    plt.close(figure)

"""The measurements as pictures: log-log curves where a group has an axis, bars where not."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from .cases import CONTESTANTS, MODES, Group
from .run import Measurement
from .timing import quartiles

UNITS = {'time': 'time (ms)', 'memory': 'peak memory (MiB)'}
MARKERS = 'os^vDPX*<>hp'
PIXELS_PER_INCH = 110


def draw(group: Group, measurements: Sequence[Measurement], path: Path) -> bool:
    """Draws a group.

    Args:
        group: the group.
        measurements: of it, and possibly of others.
        path: a new PNG file.

    Returns:
        Whether there was something to draw.
    """
    mine = [m for m in measurements if m.group == group.key and m.seconds]
    if not mine:
        return False
    has_curves = bool(group.axis) and len({m.place for m in mine}) > 1
    figure = _curves(group, mine) if has_curves else _bars(mine)
    figure.suptitle(group.title)
    with path.open('xb') as file:
        figure.savefig(file, format='png', dpi=PIXELS_PER_INCH, bbox_inches='tight')
    plt.close(figure)
    return True


def _figure(m: Measurement, measure: str) -> float | None:
    if measure == 'time':
        return 1000 * quartiles(m.seconds)[0]
    return m.peak_bytes / 2**20 if m.peak_bytes else None


def _measures(measurements: Sequence[Measurement]) -> list[str]:
    return ['time', *(['memory'] if any(m.peak_bytes for m in measurements) else [])]


def _modes(measurements: Sequence[Measurement]) -> list[str]:
    return [mode for mode in MODES if any(m.mode == mode for m in measurements)]


def _style(name: str, names: Sequence[str]) -> dict:
    """Ours stand out: thick and solid."""
    index = names.index(name)
    ours = CONTESTANTS[name].is_ours
    return dict(
        color=plt.get_cmap('tab10' if len(names) <= 10 else 'tab20')(index),
        marker=MARKERS[index % len(MARKERS)],
        linestyle='-' if ours else '--',
        linewidth=2.4 if ours else 1.2,
        label=name,
    )


def _curves(group: Group, measurements: Sequence[Measurement]) -> plt.Figure:
    modes, measures = _modes(measurements), _measures(measurements)
    names = list(dict.fromkeys(m.name for m in measurements))
    size = (5.2 * len(modes), 3.8 * len(measures))
    figure, grid = plt.subplots(
        len(measures), len(modes), figsize=size, squeeze=False, layout='constrained'
    )
    for row, measure in zip(grid, measures, strict=True):
        for axes, mode in zip(row, modes, strict=True):
            of_mode = [m for m in measurements if m.mode == mode]
            for name in names:
                points = sorted(
                    (m.place, value)
                    for m in of_mode
                    if m.name == name and (value := _figure(m, measure))
                )
                if points:
                    axes.plot(*zip(*points, strict=True), **_style(name, names))
            axes.set_title(mode, fontsize=10)
            _set_up(axes, group.axis, UNITS[measure], {m.place for m in of_mode})
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc='outside lower center', ncols=min(3, len(names)), fontsize=8
    )
    return figure


def _set_up(axes: Axes, axis: str, unit: str, places: set[float]) -> None:
    axes.set(xscale='log', yscale='log', xlabel=axis, ylabel=unit)
    axes.set_xticks(sorted(places))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.ticklabel_format(axis='x', style='plain')
    axes.tick_params(axis='x', labelrotation=30 if max(places) > 1000 else 0, labelsize=8)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which='both', alpha=0.25)


def _bars(measurements: Sequence[Measurement]) -> plt.Figure:
    modes, measures = _modes(measurements), _measures(measurements)
    cases = list(dict.fromkeys(m.case for m in measurements))
    counts = [len({m.name for m in measurements if m.case == case}) for case in cases]
    bars = 0.22 * len(modes)
    heights = [0.7 + count * bars for count in counts]
    figure, grid = plt.subplots(
        len(cases),
        len(measures),
        figsize=(5.4 * len(measures), sum(heights) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout='constrained',
    )
    for row, case in zip(grid, cases, strict=True):
        of_case = [m for m in measurements if m.case == case]
        for axes, measure in zip(row, measures, strict=True):
            _bar_chart(axes, of_case, modes, measure)
            axes.set_title(case, fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(modes), fontsize=8)
    return figure


def _bar_chart(
    axes: Axes, measurements: Sequence[Measurement], modes: Sequence[str], measure: str
) -> None:
    names = list(dict.fromkeys(m.name for m in measurements))
    thickness = 0.8 / len(modes)
    for i, mode in enumerate(modes):
        found = {m.name: _figure(m, measure) for m in measurements if m.mode == mode}
        places = [k + (i - (len(modes) - 1) / 2) * thickness for k in range(len(names))]
        values = [found.get(name) or 0.0 for name in names]
        axes.barh(places, values, thickness, label=mode, color=('tab:blue', 'tab:orange')[i])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight('bold' if CONTESTANTS[name].is_ours else 'normal')
    axes.invert_yaxis()
    axes.set_xlabel(UNITS[measure])
    axes.grid(axis='x', alpha=0.25)

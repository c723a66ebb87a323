"""Curves and a summary of training runs.

``python tools/analysis_tools/analyze_logs.py RUN... [--keys KEY...] [--out curves.png]``. A run is
a work dir, all its restarts joined, or one JSON file of scalars. The summary gives the last and the
best value of each key; a key may contain wildcards, as ``'loss*'``.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import math
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.training.run_logs import RunLog, read_run

COLUMNS = 3
FEW = 20  # points that are marked


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dir, or a JSON file of it')
    parser.add_argument('--keys', nargs='+', help='default: losses, learning rate and metrics')
    parser.add_argument('--out', type=Path, metavar='FILE.png', help='new file for the curves')
    parser.add_argument('--x', choices=['epoch', 'iteration'], help='default: as the runs count')
    parser.add_argument(
        '--smooth', type=int, default=1, metavar='N', help='mean of N neighbouring points'
    )
    parser.add_argument('--names', nargs='+', help='names of the runs, one each')
    return parser.parse_args()


def name_runs(runs: Sequence[str]) -> list[str]:
    """The paths inside of their common folder."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError('one run is named twice')
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def choose_keys(logs: Sequence[RunLog], wanted: Sequence[str] | None) -> list[str]:
    """The keys asked for; by default losses, learning rate and metrics."""
    keys = list(dict.fromkeys(key for log in logs for key in log.curves))
    if wanted is None:
        metrics = set().union(*(log.metrics for log in logs))
        metrics = [k for k in keys if k in metrics and not _is_absent(logs, k)]
        return [k for k in keys if 'loss' in k] + [k for k in keys if k == 'lr'] + metrics
    chosen = []
    for pattern in wanted:
        found = [key for key in keys if fnmatchcase(key, pattern)]
        if not found:
            raise UsageError(f'--keys {pattern}: no such key; there are {", ".join(sorted(keys))}')
        chosen += [key for key in found if key not in chosen]
    return chosen


def _is_absent(logs: Sequence[RunLog], key: str) -> bool:
    """COCO's figures for sizes that do not occur are -1."""
    return all(set(log.curves[key].values) == {-1} for log in logs if key in log.curves)


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of neighbouring values, of fewer at the ends."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, 'same') / np.convolve(np.ones(len(values)), ones, 'same')


def draw(logs: Sequence[RunLog], keys: Sequence[str], by_epoch: bool, window: int) -> Figure:
    """One panel for each key, one colour for each run; keys logged once share a panel."""
    once = [k for k in keys if all(len(x.curves[k].values) == 1 for x in logs if k in x.curves)]
    curves = [key for key in keys if key not in once]
    panels = len(curves) + bool(once)
    columns = min(COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure = Figure((4 * columns, 2.8 * rows + 0.4), layout='constrained')
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for ax, key in zip(axes, curves, strict=False):
        draw_curves(ax, logs, key, by_epoch, window)
    if once:
        draw_values(axes[-1], logs, once)
    for ax in axes:
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
    lines, names = [Line2D([], [], color=f'C{i}') for i in range(len(logs))], [x.name for x in logs]
    figure.legend(lines, names, loc='outside upper center', ncols=columns, fontsize=9)
    return figure


def draw_curves(ax: Axes, logs: Sequence[RunLog], key: str, by_epoch: bool, window: int) -> None:
    """One key of each run; where it is smoothed, what was logged stays faintly visible."""
    for i, log in enumerate(logs):
        if key not in log.curves:
            continue
        x, values = log.positions(key, by_epoch), log.curves[key].values
        if window > 1 and key != 'lr' and key not in log.metrics:
            ax.plot(x, values, color=f'C{i}', alpha=0.3, linewidth=0.8)
            values = smoothed(values, window)
        width = 1.4 + min(3, len(logs) - 1 - i)  # equal curves stay visible
        marker = 'o' if len(x) <= FEW else None
        ax.plot(x, values, color=f'C{i}', linewidth=width, marker=marker, markersize=4)
    ax.set_title(key, fontsize=10)
    ax.set_xlabel('epoch' if by_epoch else 'iteration', fontsize=9)
    ax.set_xlim(left=0)
    ax.ticklabel_format(axis='y', scilimits=(-2, 4))


def draw_values(ax: Axes, logs: Sequence[RunLog], keys: Sequence[str]) -> None:
    """Values that were logged once, as points on a line for each key."""
    for i, log in enumerate(logs):
        known = {key: log.curves[key].values[0] for key in keys if key in log.curves}
        ax.plot(list(known.values()), list(known), 'o', color=f'C{i}', markersize=6)
        for key, value in known.items():
            above = dict(xytext=(0, 5), textcoords='offset points', ha='center')
            ax.annotate(f'{value:.4g}', (value, key), fontsize=7, **above)
    ax.invert_yaxis()
    ax.margins(x=0.15, y=0.15)
    ax.set_title('logged once', fontsize=10)


def summary(logs: Sequence[RunLog], keys: Sequence[str], by_epoch: bool) -> str:
    """Last and best value of each key, then time and memory of each run."""
    table = [('run', 'key', 'last', 'best', 'at epoch' if by_epoch else 'at iteration')]
    for log in logs:
        for key in (key for key in keys if key in log.curves):
            values = log.curves[key].values
            figures = ('', '')
            if key in log.metrics or 'loss' in key:
                best = (min if 'loss' in key else max)(values)
                where = log.positions(key, by_epoch)[values.index(best)]
                figures = (f'{best:.4g}', f'{where:.4g}' if by_epoch else f'{where:.0f}')
            table.append((log.name, key, f'{values[-1]:.4g}', *figures))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = zip(row, '<<>>>', widths, strict=True)
        lines.append('  '.join(f'{cell:{side}{width}}' for cell, side, width in cells).rstrip())
    for log in logs:
        length = max(curve.iterations[-1] for curve in log.curves.values())
        parts = [f'{length} iterations']
        if 'time' in log.curves:
            parts.append(f'{np.mean(log.curves["time"].values):.3f} s per iteration')
        if 'memory' in log.curves:
            parts.append(f'peak memory {max(log.curves["memory"].values):.0f} MiB')
        lines.append(f'{log.name}: {", ".join(parts)}')
    return '\n'.join(lines)


def main() -> None:
    """Draws and prints what the command line names."""
    args = parse_args()
    with usage_errors_exit():
        names = args.names or name_runs(args.runs)
        if len(names) != len(args.runs):
            raise UsageError(f'--names: {len(names)} names for {len(args.runs)} runs')
        if args.smooth < 1:
            raise UsageError(f'--smooth {args.smooth}: give at least 1')
        if args.out and args.out.exists():
            raise UsageError(f'--out {args.out}: the file exists; remove it or name another')
        if args.out and not os.path.isdir(args.out.parent):
            raise UsageError(f'--out {args.out}: there is no folder {args.out.parent}')
        logs = [read_run(run, name) for run, name in zip(args.runs, names, strict=True)]
        keys = choose_keys(logs, args.keys)
        counts_epochs = all(log.iterations_per_epoch for log in logs)
        if args.x == 'epoch' and not counts_epochs:
            raise UsageError('--x epoch: a run counts only iterations; use --x iteration')
    by_epoch = counts_epochs and args.x != 'iteration'
    print(summary(logs, keys, by_epoch))
    if args.out:
        with style.context('seaborn-v0_8-colorblind'):
            draw(logs, keys, by_epoch, args.smooth).savefig(args.out, dpi=110)
        print(f'curves in {args.out}')


if __name__ == '__main__':
    main()

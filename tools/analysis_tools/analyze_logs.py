"""Curves and a summary of training runs.

``python tools/analysis_tools/analyze_logs.py RUN... [--keys KEY...] [--out curves.png]``. A run is
a work dir, all its restarts joined, or one JSON file of scalars. The summary gives the last and the
best value of each key; a key may hold wildcards, as ``'loss*'``.
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.training.run_logs import RunLog, read_run

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000']
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
    """The shortest ends of the paths that differ."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError('one run is named twice')
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ['/'.join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


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
    counts = np.convolve(np.ones(len(values)), ones, 'same')
    return np.convolve(values, ones, 'same') / counts


def draw(logs: Sequence[RunLog], keys: Sequence[str], by_epoch: bool, window: int) -> plt.Figure:
    """One panel for each key, one colour for each run; metrics logged once share a panel."""
    found = {key: [log for log in logs if key in log.curves] for key in keys}
    once = [k for k in keys if all(len(log.curves[k].values) == 1 for log in found[k])]
    curves = [key for key in keys if key not in once]
    panels = len(curves) + bool(once)
    columns = min(COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.8 * rows + 0.4), squeeze=False, layout='constrained'
    )
    colours = dict(zip(logs, np.resize(COLOURS, len(logs)), strict=True))
    # Equal curves stay visible: the later ones are thinner.
    widths = dict(zip(logs, np.linspace(1.4 + min(len(logs) - 1, 3), 1.4, len(logs)), strict=True))
    for ax, key in zip(axes.flat, curves, strict=False):
        for log in found[key]:
            smooth = 1 if key == 'lr' or key in log.metrics else window
            draw_curve(ax, log, key, by_epoch, smooth, colours[log], widths[log])
        ax.set_title(key, fontsize=10)
        ax.set_xlabel('epoch' if by_epoch else 'iteration', fontsize=9)
        ax.set_xlim(left=0)
        ax.ticklabel_format(axis='y', scilimits=(-2, 4))
    if once:
        draw_values(axes.flat[len(curves)], logs, once, colours)
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
    for ax in axes.flat[panels:]:
        ax.set_axis_off()
    if len(logs) > 1:
        handles = [plt.Line2D([], [], color=colours[log], label=log.name) for log in logs]
        figure.legend(handles=handles, loc='outside upper center', ncols=columns, fontsize=9)
    else:
        figure.suptitle(logs[0].name, fontsize=11)
    return figure


def draw_curve(
    ax: plt.Axes,
    log: RunLog,
    key: str,
    by_epoch: bool,
    window: int,
    colour: str,
    width: float,
) -> None:
    """One key of one run; where it is smoothed, what was logged stays faintly visible."""
    x, values = log.positions(key, by_epoch), log.curves[key].values
    if window > 1:
        ax.plot(x, values, color=colour, alpha=0.3, linewidth=0.8)
        values = smoothed(values, window)
    marker = 'o' if len(x) <= FEW else None
    ax.plot(x, values, color=colour, marker=marker, markersize=4, linewidth=width)


def draw_values(
    ax: plt.Axes, logs: Sequence[RunLog], keys: Sequence[str], colours: Mapping[RunLog, str]
) -> None:
    """Values that were logged once, as points on a line for each key."""
    for log in logs:
        known = [key for key in keys if key in log.curves]
        values = [log.curves[key].values[0] for key in known]
        ax.plot(values, known, 'o', color=colours[log], markersize=6)
        for key, value in zip(known, values, strict=True):
            ax.annotate(
                f'{value:.4g}', (value, key), (0, 5), textcoords='offset points', ha='center',
                fontsize=7,
            )  # fmt: skip
    ax.invert_yaxis()
    ax.margins(x=0.15, y=0.15)
    ax.set_title('logged once', fontsize=10)


def summary(logs: Sequence[RunLog], keys: Sequence[str], by_epoch: bool) -> str:
    """Last and best value of each key, then time and memory of each run."""
    unit = 'epoch' if by_epoch else 'iteration'
    table = [('run', 'key', 'last', 'best', f'at {unit}')]
    for log in logs:
        for key in keys:
            if key not in log.curves:
                continue
            values = log.curves[key].values
            cells = ('', '')
            if key in log.metrics or 'loss' in key:
                best = (min if 'loss' in key else max)(values)
                where = log.positions(key, by_epoch)[values.index(best)]
                cells = (f'{best:.4g}', f'{where:.4g}' if by_epoch else f'{where:.0f}')
            table.append((log.name, key, f'{values[-1]:.4g}', *cells))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        '  '.join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    for log in logs:
        parts = [f'{_length(log)} iterations']
        if 'time' in log.curves:
            parts.append(f'{np.mean(log.curves["time"].values):.3f} s per iteration')
        if 'memory' in log.curves:
            parts.append(f'peak memory {max(log.curves["memory"].values):.0f} MiB')
        lines.append(f'{log.name}: {", ".join(parts)}')
    return '\n'.join(lines)


def _length(log: RunLog) -> int:
    return max(curve.iterations[-1] for curve in log.curves.values())


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
        draw(logs, keys, by_epoch, args.smooth).savefig(args.out, dpi=110)
        print(f'curves in {args.out}')


if __name__ == '__main__':
    main()

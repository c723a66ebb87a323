"""The measurements as Markdown, as JSON and as pictures."""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UsageError
from ..process import KEEP_FREED
from . import FORWARD, MODES, Group, machine
from .measure import Measurement, Options, quartiles
from .models import CONTESTANTS
from .targets import SPEED, Slope, Verdict

MIB = 1 << 20
Rates = Mapping[str, float]


def choose_folder(out_dir: Path | None, default: str) -> Path:
    """The folder for a report: ``out_dir``, or one of its own in ``work_dirs``.

    Args:
        out_dir: what the user asks for, if anything.
        default: begins the path in ``work_dirs``; the time is added.

    Raises:
        UsageError: if it is not a new or empty folder.
    """
    folder = out_dir or Path(f'work_dirs/{default}{time.strftime("%Y%m%d-%H%M%S")}')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f'--out-dir {folder} already exists: name a new or an empty folder')
    return folder


class Results(NamedTuple):
    """Everything that a report shows; without targets, ``verdicts`` is empty."""

    conditions: Mapping[str, Any]
    groups: Sequence[Group]
    measurements: Sequence[Measurement]
    slopes: Sequence[Slope]
    verdicts: Sequence[Verdict]

    def of(self, group: Group) -> list[Measurement]:
        """Measurements of one group."""
        return [m for m in self.measurements if m.group == group.key]


def conditions(options: Options, rates: Rates) -> dict[str, Any]:
    """Where and how everything was measured."""
    return {
        'command': ' '.join(['python', *sys.argv]),
        'device': machine.device_name(options.device),
        'dtype': str(options.dtype).removeprefix('torch.'),
        'threads': options.threads,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'allocator': KEEP_FREED if options.device.type == 'cpu' else {},
        'seconds_per_case': options.seconds,
        'rounds': options.rounds,
        'rates': dict(rates),
    }


def as_json(results: Results) -> str:
    """Everything, with the seconds of every round."""
    names = dict.fromkeys(m.name for m in results.measurements)
    keys = ('title', 'text', 'baseline', 'axis')
    content = {
        'conditions': results.conditions,
        'contestants': {name: CONTESTANTS[name].summary for name in names},
        'groups': {g.key: {key: getattr(g, key) for key in keys} for g in results.groups},
        'measurements': [_as_dict(m) for m in results.measurements],
        'slopes': [dataclasses.asdict(slope) for slope in results.slopes],
        'targets': [
            dataclasses.asdict(v.target)
            | {key: getattr(v, key) for key in ('measured', 'lower', 'upper', 'baseline', 'met')}
            for v in results.verdicts
        ],
    }
    return json.dumps(content, indent=1) + '\n'


def _as_dict(m: Measurement) -> dict[str, Any]:
    result = dataclasses.asdict(m)
    for key in ('seconds', 'speedups'):
        figures = quartiles(result[key]) if result[key] else (None, None, None)
        names = ('median', 'lower', 'upper')
        result[f'{key}_summary'] = dict(zip(names, figures, strict=True))
    return result


def as_markdown(results: Results) -> str:
    """The report."""
    about = results.conditions
    rates = about['rates']
    settings = ', '.join(f'M_{name} = {value}' for name, value in about['allocator'].items())
    between = f'with an allocator that keeps freed memory (mallopt: {settings})'
    if not settings:
        between = 'with the L2 cache of the GPU overwritten between them'
    lines = [
        f'`{about["command"]}`',
        '',
        f'{about["device"]}, {about["threads"]} threads, {about["dtype"]}, torch {about["torch"]}. '
        f'Measured here: copy {rates["copy_bytes"] / 1e9:.1f} GB/s (read + written), matrix '
        f'product {rates["matmul_flops"] / 1e9:.0f} GFLOP/s, depth-wise 7 x 7 convolution '
        f'{rates["depthwise_flops"] / 1e9:.0f} GFLOP/s.',
        '',
        'All contestants ran in one process, one after another in rounds of random order, '
        f'{between}. Times are medians (quartiles) of the rounds, ratios medians of the ratios '
        'within a round. Peak memory is that of one call, in addition to weights and inputs. '
        'Forward: evaluation, inference mode; forward+backward: training, all gradients (of an '
        'image: none). A multiply-add counts as 2 FLOPs, a backward as twice the forward. Copy '
        'share: bytes of inputs and outputs over time, relative to the rate of a copy. Least ms: '
        'the longer of the time that these bytes take at the rate of a copy, and the FLOPs (matrix '
        'products and convolutions) at the rate of a matrix product.',
    ]
    if results.verdicts:
        lines += ['', '## Targets', '', *_verdict_table(results.verdicts, rates)]
    for group in results.groups:
        lines += ['', f'## {group.title}', '', f'{group.text} Baseline: {group.baseline}.', '']
        lines += [*_group_table(results.of(group), rates), '']
        if group.paper_rates:
            lines += [*_rate_table(group, results.of(group)), '']
        lines += _notes(results.of(group))
    if results.slopes:
        lines += ['', '## Slopes', '', *_slope_table(results.slopes)]
    return '\n'.join(lines) + '\n'


def _notes(measurements: Sequence[Measurement]) -> list[str]:
    """What each contestant computes, which were left out and why, and how well twins agree."""
    names = dict.fromkeys(m.name for m in measurements)
    notes = [f'{name}: {CONTESTANTS[name].summary}' for name in names]
    left_out: dict[tuple[str, str], list[str]] = {}
    for m in measurements:
        if m.left_out is not None:
            left_out.setdefault((m.name, m.left_out), []).append(f'{m.case}, {m.mode}')
    for (name, reason), places in left_out.items():
        notes.append(f'left out: {name}: {reason} ({"; ".join(places)})')
    differences = [m.difference for m in measurements if m.difference is not None]
    if differences:
        notes.append(
            f'contestants that compute the same differ by at most {max(differences):.0e} of the '
            'largest output'
        )
    return [f'- {note}' for note in notes]


def _group_table(measurements: Sequence[Measurement], rates: Rates) -> list[str]:
    modes = _modes(measurements)
    header = ['case', 'contestant']
    for mode in modes:
        header += [f'{mode}, ms', 'times as fast', 'peak, MiB', 'copy share']
    if FORWARD in modes:
        header += ['forward, GFLOP', 'least ms']
    rows = []
    found = {(m.case, m.name, m.mode): m for m in measurements}
    for case, name in dict.fromkeys((m.case, m.name) for m in measurements if m.seconds):
        of_row = [found.get((case, name, mode)) for mode in modes]
        row = [case, name, *(cell for m in of_row for cell in _time_cells(m, rates))]
        rows.append(row + (_work_cells(of_row[0], rates) if FORWARD in modes else []))
    return _table(header, rows)


def _rate_table(group: Group, measurements: Sequence[Measurement]) -> list[str]:
    """Images per second, with those of the paper."""
    batches = {case.label: case.size.batch for case in group.cases}
    header = ['case', 'contestant', 'mode', 'images/s', 'paper: images/s']
    rows = []
    for m in measurements:
        if m.seconds:
            row = [m.case, m.name, m.mode, _number(batches[m.case] / m.time)]
            rows.append([*row, f'{group.paper_rates[m.name]:g}'])
    return _table(header, rows)


def _time_cells(m: Measurement | None, rates: Rates) -> list[str]:
    if m is None or not m.seconds:
        return ['-'] * 4
    median, lower, upper = (_number(1000 * value) for value in quartiles(m.seconds))
    speedup = _number(quartiles(m.speedups)[0]) if m.speedups else '-'
    peak = '-' if m.peak_bytes is None else _number(m.peak_bytes / MIB)
    share = m.moved_bytes / m.time / rates['copy_bytes']
    return [f'{median} ({lower} to {upper})', speedup, peak, _number(share)]


def _work_cells(m: Measurement | None, rates: Rates) -> list[str]:
    if m is None or not m.seconds:
        return ['-'] * 2
    flops = '-' if m.flops is None else _number(m.flops / 1e9)
    return [flops, _number(1000 * m.least_seconds(rates))]


def _verdict_table(verdicts: Sequence[Verdict], rates: Rates) -> list[str]:
    header = ['what', 'target', 'measured', 'met', 'against', 'ms', 'GFLOP', 'least ms']
    header.append('MiB moved')
    rows = []
    for v in verdicts:
        sign = '>=' if v.target.kind == SPEED else '<='
        row = [v.target.what, f'{sign} {v.target.bound:g} {v.target.kind}']
        if v.measured is None or v.ours is None:
            rows.append([*row, 'not measured', *['-'] * 6])
            continue
        spread = f' ({_number(v.lower)} to {_number(v.upper)})' if v.lower and v.upper else ''
        row += [f'{_number(v.measured)}{spread}', 'yes' if v.met else 'no', v.baseline]
        time = _number(1000 * v.ours.time) if v.ours.seconds else '-'
        rows.append([*row, time, *_work_cells(v.ours, rates), _number(v.ours.moved_bytes / MIB)])
    met = sum(v.met is True for v in verdicts)
    return [*_table(header, rows), '', f'{met} of {len(verdicts)} met.']


def _slope_table(slopes: Sequence[Slope]) -> list[str]:
    header = ['group', 'contestant', 'mode', 'grows with', 'from', 'to', 'time', 'memory']
    rows: dict[tuple, dict[str, str]] = {}
    for s in slopes:
        row = (s.group, s.name, s.mode, s.axis, f'{s.first:g}', f'{s.last:g}')
        rows.setdefault(row, {})[s.measure] = f'{s.slope:.2f}'
    cells = [[*row, *(found.get(x, '-') for x in header[-2:])] for row, found in rows.items()]
    return [*_table(header, cells), '', 'Exponents: 1 is proportional, 2 quadratic.']


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return ['| ' + ' | '.join(line) + ' |' for line in lines]


def _number(value: float) -> str:
    """A figure with three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f'{value:.{digits}f}'


def _modes(measurements: Sequence[Measurement]) -> list[str]:
    return [mode for mode in MODES if any(m.mode == mode for m in measurements)]


def draw(group: Group, measurements: Sequence[Measurement], path: Path) -> None:
    """Draws a group into a new PNG file: log-log curves where it has an axis, otherwise bars.

    Nothing is drawn where no contestant ran.
    """
    from matplotlib.figure import Figure

    ran = [m for m in measurements if m.seconds]
    if not ran:
        return
    units = {'time (ms)': lambda m: 1000 * m.time}
    if any(m.peak_bytes for m in ran):
        units['peak memory (MiB)'] = lambda m: (m.peak_bytes or 0) / MIB
    modes, has_curves = _modes(ran), bool(group.axis) and len({m.place for m in ran}) > 1
    bars = len({(m.case, m.name) for m in ran})
    width, height = (5.2, 3.8) if has_curves else (6.4, 0.7 + 0.25 * bars)
    size = (width * len(modes), height * len(units) + 0.8)
    figure = Figure(size, layout='constrained')
    grid = figure.subplots(len(units), len(modes), squeeze=False)
    for line, (unit, figure_of) in zip(grid, units.items(), strict=True):
        for axes, mode in zip(line, modes, strict=True):
            axes.set_title(mode, fontsize=10)
            shown = [(m, value) for m in ran if m.mode == mode and (value := figure_of(m))]
            if has_curves:
                _draw_curves(axes, shown, list(dict.fromkeys(m.name for m in ran)))
                axes.set(xlabel=group.axis, ylabel=unit)
            else:
                _draw_bars(axes, shown, several=len({m.case for m in ran}) > 1)
                axes.set(xlabel=unit)
            axes.grid(which='both', alpha=0.25)
    if has_curves:
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize=8)
    figure.suptitle(group.title)
    with path.open('xb') as file:
        figure.savefig(file, format='png', dpi=110, bbox_inches='tight')


def _draw_bars(axes: Any, shown: Sequence[tuple[Measurement, float]], several: bool) -> None:
    """One bar for each contestant, and for each of ``several`` cases."""
    labels = [f'{m.name} ({m.case})' if several else m.name for m, _ in shown]
    colours = ['tab:blue' if CONTESTANTS[m.name].is_ours else '0.6' for m, _ in shown]
    axes.barh(range(len(shown)), [value for _, value in shown], color=colours)
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()


def _draw_curves(
    axes: Any, shown: Sequence[tuple[Measurement, float]], names: Sequence[str]
) -> None:
    """One line for each contestant, thick and solid for ours."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for index, name in enumerate(names):
        points = sorted((m.place, value) for m, value in shown if m.name == name)
        colour = f'C{index}' if index < 10 else str(0.1 * index - 1)
        style, width = ('-', 2.4) if CONTESTANTS[name].is_ours else ('--', 1.2)
        options = dict(color=colour, marker='os^vDPX*<>hp'[index % 12], label=name)
        axes.loglog(*np.transpose(points), linestyle=style, linewidth=width, **options)
    places = sorted({m.place for m, _ in shown})
    axes.set_xticks(places, [f'{place:g}' for place in places], fontsize=8)
    axes.tick_params(axis='x', labelrotation=30 if places[-1] > 1000 else 0)
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter='{x:g}')
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())

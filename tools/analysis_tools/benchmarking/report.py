"""The measurements as Markdown and as JSON."""

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import allocator, roofline
from .cases import CONTESTANTS, FORWARD, MODES, Group
from .results import Slope, copy_share, least_seconds
from .run import Measurement, Options
from .targets import SPEED, Verdict
from .timing import quartiles

MIB = 1 << 20
Rates = Mapping[str, float]


def conditions(options: Options, rates: Rates) -> dict[str, Any]:
    """Where and how everything was measured.

    Args:
        options: of the run.
        rates: of :func:`.roofline.measure_rates`.
    """
    device = options.machine.device
    on_gpu = device.type == 'cuda'
    return {
        'command': ' '.join(['python', *sys.argv]),
        'device': torch.cuda.get_device_name(device) if on_gpu else _processor(),
        'dtype': str(options.machine.dtype).removeprefix('torch.'),
        'threads': options.threads,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'allocator': {name: os.environ.get(name, '') for name in allocator.TIMING},
        'seconds_per_case': options.seconds,
        'rounds': options.rounds,
        'rates': dict(rates),
    }


def _processor() -> str:
    cores = len(os.sched_getaffinity(0))
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.machine()}, {cores} cores'


def write_json(
    path: Path,
    about: Mapping[str, Any],
    groups: Sequence[Group],
    measurements: Sequence[Measurement],
    slopes: Sequence[Slope],
    verdicts: Sequence[Verdict],
) -> None:
    """Writes everything, with the seconds of every round.

    Args:
        path: a new file.
        about: of :func:`conditions`.
        groups: what was measured.
        measurements: of them.
        slopes: of them.
        verdicts: of the targets; empty without.
    """
    names = dict.fromkeys(m.name for m in measurements)
    content = {
        'conditions': about,
        'contestants': {name: CONTESTANTS[name].summary for name in names},
        'groups': {
            g.key: {'title': g.title, 'text': g.text, 'baseline': g.baseline, 'axis': g.axis}
            for g in groups
        },
        'measurements': [_as_dict(m) for m in measurements],
        'slopes': [dataclasses.asdict(slope) for slope in slopes],
        'targets': [
            dataclasses.asdict(v.target)
            | dict(measured=v.measured, lower=v.lower, upper=v.upper)
            | dict(baseline=v.baseline, met=v.met)
            for v in verdicts
        ],
    }
    with path.open('x') as file:
        json.dump(content, file, indent=1)
        file.write('\n')


def _as_dict(m: Measurement) -> dict[str, Any]:
    summary = {}
    for key in ('seconds', 'speedups'):
        values = getattr(m, key)
        median, lower, upper = quartiles(values) if values else (None, None, None)
        summary[f'{key}_summary'] = dict(median=median, lower=lower, upper=upper)
    return dataclasses.asdict(m) | summary


def markdown(
    about: Mapping[str, Any],
    groups: Sequence[Group],
    measurements: Sequence[Measurement],
    slopes: Sequence[Slope],
    verdicts: Sequence[Verdict],
) -> str:
    """The report; arguments as of :func:`write_json`."""
    rates = about['rates']
    settings = ' '.join(f'{name}={value}' for name, value in about['allocator'].items())
    lines = [
        f'`{about["command"]}`',
        '',
        f'{about["device"]}, {about["threads"]} threads, {about["dtype"]}, torch {about["torch"]}. '
        f'Measured here: {roofline.describe(rates)}.',
        '',
        f'Contestants ran in turn, in rounds of random order, in one process with `{settings}`. '
        'Times are medians (quartiles) of the rounds, ratios medians of the ratios within a round. '
        'Peak memory is that of one call, over weights and inputs. Forward: evaluation, inference '
        'mode; forward+backward: training, all gradients (of an image: none). A multiply-add is 2 '
        'FLOPs; a backward counts as twice the forward.',
    ]
    if verdicts:
        lines += ['', '## Targets', '', *_verdict_table(verdicts, rates)]
    for group in groups:
        mine = [m for m in measurements if m.group == group.key]
        lines += ['', f'## {group.title}', '', f'{group.text} Baseline: {group.baseline}.', '']
        lines += _group_table(mine, rates)
        lines += ['', *_notes(mine)]
    if slopes:
        lines += ['', '## Slopes', '', *_slope_table(slopes)]
    return '\n'.join(lines) + '\n'


def _notes(measurements: Sequence[Measurement]) -> list[str]:
    """What each contestant computes, which were left out and why, and how well twins agree."""
    names = dict.fromkeys(m.name for m in measurements)
    notes = [f'{name}: {CONTESTANTS[name].summary}' for name in names]
    left_out = {}
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
    modes = [mode for mode in MODES if any(m.mode == mode for m in measurements)]
    header = ['case', 'contestant']
    for mode in modes:
        header += [f'{mode}, ms', 'times as fast', 'peak, MiB', 'share of copy rate']
    if FORWARD in modes:
        header += ['forward, GFLOP', 'least ms']
    rows = []
    found = {(m.case, m.name, m.mode): m for m in measurements}
    for case, name in dict.fromkeys((m.case, m.name) for m in measurements):
        row = [case, name]
        of_row = [found.get((case, name, mode)) for mode in modes]
        if not any(m is not None and m.seconds for m in of_row):
            continue
        for m in of_row:
            row += _time_cells(m, rates)
        if FORWARD in modes:
            row += _work_cells(of_row[0], rates)
        rows.append(row)
    return table(header, rows)


def _time_cells(m: Measurement | None, rates: Rates) -> list[str]:
    if m is None or not m.seconds:
        return ['-'] * 4
    median, lower, upper = (1000 * value for value in quartiles(m.seconds))
    time = f'{number(median)} ({number(lower)} to {number(upper)})'
    speedup = number(quartiles(m.speedups)[0]) if m.speedups else '-'
    peak = '-' if m.peak_bytes is None else number(m.peak_bytes / MIB)
    return [time, speedup, peak, number(copy_share(m, rates))]


def _work_cells(m: Measurement | None, rates: Rates) -> list[str]:
    if m is None or not m.seconds:
        return ['-'] * 2
    flops = '-' if m.flops is None else number(m.flops / 1e9)
    return [flops, number(1000 * least_seconds(m, rates))]


def _verdict_table(verdicts: Sequence[Verdict], rates: Rates) -> list[str]:
    header = ['what', 'target', 'measured', 'met', 'against', 'ms', 'GFLOP', 'MiB moved']
    header += ['least ms']
    rows = []
    for v in verdicts:
        sign = '>=' if v.target.kind == SPEED else '<='
        target = f'{sign} {v.target.bound:g} {v.target.kind}'
        if v.measured is None:
            rows.append([v.target.what, target, 'not measured', '-', *['-'] * 5])
            continue
        measured = number(v.measured)
        if v.lower is not None:
            measured += f' ({number(v.lower)} to {number(v.upper)})'
        m = v.ours
        time = number(1000 * quartiles(m.seconds)[0]) if m.seconds else '-'
        moved = number(m.moved_bytes / MIB)
        flops, least = _work_cells(m, rates)
        met = 'yes' if v.met else 'no'
        rows.append([v.target.what, target, measured, met, v.baseline, time, flops, moved, least])
    met = sum(v.met is True for v in verdicts)
    text = (
        '"least ms" is the time of the bytes that must move at the rate of a copy, or of the FLOPs '
        '(matrix products and convolutions) at that of a matrix product, whichever is longer.'
    )
    return [*table(header, rows), '', f'{met} of {len(verdicts)} met. {text}']


def _slope_table(slopes: Sequence[Slope]) -> list[str]:
    header = ['group', 'contestant', 'mode', 'grows with', 'from', 'to', 'time', 'memory']
    rows = {}
    for s in slopes:
        row = (s.group, s.name, s.mode, s.axis, f'{s.first:g}', f'{s.last:g}')
        rows.setdefault(row, {})[s.measure] = f'{s.slope:.2f}'
    text = 'Exponents: 1 is proportional, 2 quadratic.'
    cells = [
        [*row, found.get('time', '-'), found.get('memory', '-')] for row, found in rows.items()
    ]
    return [*table(header, cells), '', text]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        header: heads of the columns.
        rows: as many cells each.
    """
    lines = [header, ['---'] * len(header), *rows]
    return ['| ' + ' | '.join(line) + ' |' for line in lines]


def number(value: float) -> str:
    """A figure with three digits that count.

    Args:
        value: the figure.
    """
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f'{value:.{digits}f}'

"""The comparison of trained rows: figures from the runs' logs, as Markdown and as JSON."""

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mmvitattn.training.run_logs import RunLog

from .sets import Row, RowSet, count_parameters, markdown_table, printed
from .training import LOSS, TIME, TOP1, Run


@dataclass
class Figures:
    """What one run has come to, with its curves; one value an epoch.

    Attributes:
        seed: of the run.
        work_dir: of the run.
        loss: mean training loss of each epoch.
        top1: validation accuracy in percent after each epoch.
        seconds: of all training steps with the loading of their data, without validation.
        images_per_second: in these.
    """

    seed: int
    work_dir: str
    loss: list[float]
    top1: list[float]
    seconds: float
    images_per_second: float


@dataclass
class Result:
    """A row with all its runs."""

    row: Row
    params: float
    runs: list[Figures]

    def values(self, of: str) -> list[float]:
        """A figure of each run: 'last', 'best' (top-1), 'loss', 'seconds', 'speed'."""
        get = {
            'last': lambda run: run.top1[-1],
            'best': lambda run: max(run.top1),
            'loss': lambda run: run.loss[-1],
            'seconds': lambda run: run.seconds,
            'speed': lambda run: run.images_per_second,
        }[of]
        return [get(run) for run in self.runs]


def figures_of(log: RunLog, run: Run, training_pictures: int) -> Figures:
    """Reads a run's figures.

    Args:
        log: of a finished run.
        run: the run.
        training_pictures: in an epoch.
    """
    times = log.curves[TIME]
    steps = [b - a for a, b in pairwise([0, *times.iterations])]
    seconds = sum(n * t for n, t in zip(steps, times.values, strict=True))
    loss, top1 = (log.curves[key].values for key in (LOSS, TOP1))
    speed = training_pictures * len(loss) / seconds
    return Figures(run.seed, str(run.work_dir), loss, top1, seconds, speed)


def collect(row_set: RowSet, runs: Sequence[Run], training_pictures: int) -> list[Result]:
    """The rows with their figures.

    Args:
        row_set: the set.
        runs: finished ones of its rows.
        training_pictures: in an epoch.

    Returns:
        The rows in the order in which they were asked for.
    """
    results: dict[str, Result] = {}
    for run in runs:
        row = run.row
        if row.name not in results:
            results[row.name] = Result(row, count_parameters(row, row_set.counted), [])
        results[row.name].runs.append(figures_of(run.log(), run, training_pictures))
    return list(results.values())


def describe_hardware() -> dict[str, Any]:
    """Where it ran."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    affinity = getattr(os, 'sched_getaffinity', None)
    return dict(
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU',
        processor=names[0] if names else platform.machine(),
        cores=len(affinity(0)) if affinity else os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def as_data(
    row_set: RowSet, record: Mapping[str, Any], results: Sequence[Result], command: str
) -> dict[str, Any]:
    """Everything, for ``results.json``.

    Args:
        row_set: the set.
        record: the settings.
        results: of :func:`collect`.
        command: that was run.
    """
    return dict(
        command=command,
        title=row_set.title,
        settings=record,
        hardware=describe_hardware(),
        counted=row_set.counted,
        paper_metric=row_set.metric,
        rows=[
            dict(
                name=result.row.name,
                config=result.row.shown_config,
                params=result.params,
                paper_params=result.row.params,
                paper=result.row.paper,
                runs=[asdict(run) for run in result.runs],
            )
            for result in results
        ],
    )


def command_line() -> str:
    """What was typed."""
    return shlex.join(['python', *sys.argv])


def comparison_table(row_set: RowSet, results: Sequence[Result]) -> str:
    """One line a row; with several seeds the mean and the standard deviation over them.

    Args:
        row_set: the set.
        results: of :func:`collect`.
    """
    header = ['row', f'{row_set.counted} params (M)', 'top-1, last epoch', 'best top-1']
    header += ['train loss, last epoch', 'seconds', 'images/s']
    if row_set.metric:
        header.append(f"the paper's own: {row_set.metric}")
    columns = [('last', 1), ('best', 1), ('loss', 3), ('seconds', 1), ('speed', 1)]
    lines = []
    for result in results:
        line = [result.row.name, f'{result.params:.2f}']
        line += [spread(result.values(of), digits) for of, digits in columns]
        lines.append([*line, printed(result.row.paper)] if row_set.metric else line)
    return markdown_table(header, lines)


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the sample standard deviation where there are several."""
    mean = f'{statistics.fmean(values):.{digits}f}'
    return mean if len(values) == 1 else f'{mean} ± {statistics.stdev(values):.{digits}f}'


def standard_error(top1: float, pictures: int) -> float:
    """Of one accuracy, from the number of pictures it is a mean of.

    Args:
        top1: the accuracy in percent.
        pictures: how many were judged.

    Returns:
        sqrt(p (1 - p) / n), in points of percent.
    """
    share = top1 / 100
    return 100 * (share * (1 - share) / pictures) ** 0.5


def caution(results: Sequence[Result], pictures: int) -> str:
    """Which differences mean something."""
    mean = statistics.fmean(value for result in results for value in result.values('last'))
    error = standard_error(mean, pictures)
    text = (
        f'Validation has {pictures:,} pictures, so one accuracy of {mean:.1f} % (the mean of the '
        f'rows) has a standard error of {error:.1f} points: two rows that differ by less than '
        f'about {2 * 2**0.5 * error:.0f} points are not told apart by one run each.'
    )
    seeds = len(results[0].runs)
    if seeds == 1:
        return f'{text} What another seed would change comes on top.'
    return f'{text} Figures are means of {seeds} seeds ± their standard deviation.'


def as_markdown(data: Mapping[str, Any], row_set: RowSet, results: Sequence[Result]) -> str:
    """The report.

    Args:
        data: of :func:`as_data`.
        row_set: the set.
        results: of :func:`collect`.
    """
    s, hardware = data['settings'], data['hardware']
    lines = [
        f'# {row_set.title}: rows compared on {s["data"]}',
        f'`{data["command"]}`',
        f'Each row from scratch. Pictures: {s["training_pictures"]:,} of {len(s["classes"])} '
        f'classes at {s["image_size"]} x {s["image_size"]}, in batches of {s["batch_size"]}. '
        f'Epochs: {s["epochs"]}. AdamW, learning rate {s["lr"]:g}. Seeds: '
        f'{", ".join(str(run.seed) for run in results[0].runs)}. {hardware["device"]}, '
        f'{hardware["processor"]}, cores: {hardware["cores"]}, threads: {hardware["threads"]}, '
        f'torch {hardware["torch"]}.',
        comparison_table(row_set, results),
        caution(results, s['validation_pictures']),
        '![Training loss and validation accuracy of each row](curves.png)',
    ]
    return '\n\n'.join(lines) + '\n'

"""Reads the scalars that MMEngine logs during training as curves."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError

SCALARS = 'scalars.json'
POSITIONS = ('step', 'epoch', 'iter')
TIMES = ('time', 'data_time')  # of validation as well as of training


class Curve(NamedTuple):
    """Values of one key over training, in order."""

    iterations: list[int]
    values: list[float]


@dataclass(eq=False)
class RunLog:
    """Log of one run, including its restarts.

    A restart that resumes from an earlier checkpoint replaces what was logged after it.
    """

    name: str
    curves: dict[str, Curve]
    metrics: set[str]  # the keys that validation logged
    iterations_per_epoch: int | None  # None for an iteration-based run

    def positions(self, key: str, by_epoch: bool) -> list[float]:
        """Positions of the values of a curve, in epochs or iterations."""
        divisor = (self.iterations_per_epoch or 1) if by_epoch else 1
        return [iteration / divisor for iteration in self.curves[key].iterations]


def read_run(run: str | Path, name: str | None = None) -> RunLog:
    """Reads the log of a run.

    Args:
        run: its work dir, or one JSON file of scalars.
        name: name of the run; default: the folder's.

    Returns:
        The log.

    Raises:
        UsageError: if there is no such run, it contains no training, or a file is damaged.
    """
    run = Path(run)
    if run.is_dir():
        # A folder for each start, named after its time.
        files = sorted(run.glob(f'*/vis_data/{SCALARS}')) or sorted(run.rglob(SCALARS))
    elif run.is_file():
        files = [run]
    else:
        raise UsageError(f'there is no run {run}: give a work dir or its {SCALARS}')
    starts = [_read_entries(file) for file in files]
    starts = [entries for entries in starts if any('iter' in entry for entry in entries)]
    if not starts:
        raise UsageError(f'{run} has logged no training: there is no {SCALARS} with iterations')
    per_epoch = _iterations_per_epoch(entry for entries in starts for entry in entries)
    log: list[tuple[int, dict]] = []  # iterations and entries
    for entries in starts:
        first = min(entry['step'] for entry in entries if 'iter' in entry)
        log = [(iteration, entry) for iteration, entry in log if iteration < first]
        for entry in entries:  # the step of validation may be an epoch
            factor = 1 if 'iter' in entry else per_epoch or 1
            log.append((entry['step'] * factor, entry))
    points: dict[str, dict[int, float]] = defaultdict(dict)
    metrics: set[str] = set()
    for iteration, entry in log:
        ignored = POSITIONS if 'iter' in entry else POSITIONS + TIMES
        scalars = {key: value for key, value in entry.items() if key not in ignored}
        metrics.update(() if 'iter' in entry else scalars)
        for key, value in scalars.items():
            points[key][iteration] = value
    curves = {key: Curve(list(known), list(known.values())) for key, known in points.items()}
    return RunLog(name or run.resolve().name, curves, metrics, per_epoch)


def _read_entries(file: Path) -> list[dict]:
    entries = []
    lines = file.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
            numbers['step'] = int(numbers['step'])
        except (ValueError, KeyError, AttributeError):
            if number == len(lines):
                break  # truncated when the run was killed
            raise UsageError(
                f'{file}, line {number}: not an entry of scalars: {line[:60]}'
            ) from None
        entries.append(numbers)
    return entries


def _iterations_per_epoch(entries: Iterable[dict]) -> int | None:
    """Estimated from the first entry of each epoch, logged after a fixed number of iterations."""
    first: dict[int, int] = {}
    last = 0.0
    for entry in entries:
        if 'iter' in entry and 'epoch' in entry:
            epoch, step = int(entry['epoch']), entry['step']
            first[epoch] = min(step, first.get(epoch, step))
            last = max(last, step / epoch)
    if not first:
        return None
    lengths = [first[e + 1] - first[e] for e in first if e + 1 in first]
    return int(statistics.median(lengths)) if lengths else max(1, round(last))

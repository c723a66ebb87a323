"""Measures groups of cases: peak memory first, each call in a child process, then time."""

import dataclasses
import functools
import sys
from collections.abc import Iterable, Sequence

import torch

from . import allocator, memory, timing
from .calls import Call, Machine
from .cases import CONTESTANTS, Case, Group, Unavailable

# Largest difference of contestants that compute the same, over the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


@dataclasses.dataclass
class Options:
    """How to measure.

    Args:
        machine: device and type.
        threads: CPU threads.
        seconds: time for the rounds of one case in one mode.
        rounds: rounds, whatever they take; ``None`` for as many as fit, at least the group's own.
        measures_memory: whether peak memory and FLOPs are measured.
    """

    machine: Machine
    threads: int
    seconds: float
    rounds: int | None = None
    measures_memory: bool = True


@dataclasses.dataclass
class Measurement:
    """What was seen of one contestant in one case and mode."""

    group: str
    case: str
    place: float
    mode: str
    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    speedups: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int | None = None
    flops: int | None = None
    moved_bytes: int = 0
    difference: float | None = None
    left_out: str | None = None

    @property
    def failed(self) -> bool:
        """Whether it should have run and did not, or computed something else."""
        return self.left_out is not None and self.left_out.startswith('failed')


def run(groups: Sequence[Group], options: Options) -> list[Measurement]:
    """Measures everything.

    Args:
        groups: what to measure.
        options: how.

    Returns:
        One measurement for each contestant, case and mode, in their order.
    """
    measurements = [
        Measurement(group.key, case.label, group.place(case), mode, name)
        for group in groups
        for case in group.cases
        for mode in case.modes
        for name in case.names
    ]
    cases = [(group, case, mode) for group in groups for case in group.cases for mode in case.modes]
    if options.measures_memory and options.machine.device.type == 'cpu':
        for number, (group, case, mode) in enumerate(cases, 1):
            _say(f'memory {number}/{len(cases)}: {group.key}, {case.label}, {mode}')
            for measurement in _of(measurements, group, case, mode):
                _measure_memory(measurement, group, case, options)
    torch.set_num_threads(options.threads)  # no thread may start before the last child has
    for number, (group, case, mode) in enumerate(cases, 1):
        _say(f'time {number}/{len(cases)}: {group.key}, {case.label}, {mode}')
        _measure_time(list(_of(measurements, group, case, mode)), group, case, options)
        allocator.give_back()
    return measurements


def _of(
    measurements: Iterable[Measurement], group: Group, case: Case, mode: str
) -> Iterable[Measurement]:
    key = (group.key, case.label, mode)
    return (m for m in measurements if (m.group, m.case, m.mode) == key)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _measure_memory(measurement: Measurement, group: Group, case: Case, options: Options) -> None:
    def probe() -> tuple[int | None, int]:
        call = Call(group, case, measurement.name, measurement.mode, options.machine)
        flops = call.count_flops()
        if call.trains:
            call()  # loads the code of the backward
        return memory.peak_on_cpu(call), flops

    try:
        measurement.peak_bytes, measurement.flops = memory.in_child(probe, options.threads)
    except Unavailable as reason:
        measurement.left_out = str(reason)


def _measure_time(
    measurements: list[Measurement], group: Group, case: Case, options: Options
) -> None:
    device = options.machine.device
    torch.compiler.reset()  # the compiler stops specialising after a few sizes of the same code
    calls, expected = {}, {}
    for m in measurements:
        if m.left_out is not None:
            continue
        try:
            call = Call(group, case, m.name, m.mode, options.machine)
            expected[m.name] = timing.warm_up(call, device)
            if device.type == 'cuda' and options.measures_memory:
                m.peak_bytes, m.flops = memory.peak_on_gpu(call), call.count_flops()
            m.moved_bytes = call.moved_bytes
            calls[m.name] = call
        except Unavailable as reason:
            m.left_out = str(reason)
        except Exception as error:
            # A long run does not end for one of its contestants; the tables show the error, and
            # the exit status does.
            m.left_out = memory.failure(error)
    _compare(measurements, calls, options.machine.dtype)
    calls = {m.name: calls[m.name] for m in measurements if m.left_out is None}
    if not calls:
        return
    least, seconds = group.least_rounds, options.seconds
    if options.rounds is not None:
        least, seconds = options.rounds, 0.0
    times = timing.interleave(calls, expected, seconds, least, device)
    for m in measurements:
        m.seconds = times.get(m.name, [])
        if m.seconds and group.baseline in times:
            m.speedups = timing.speedups(times[group.baseline], m.seconds)


def _compare(
    measurements: Sequence[Measurement], calls: dict[str, Call], dtype: torch.dtype
) -> None:
    """Compares the contestants that compute the same; one that does not has failed."""

    @functools.cache
    def outputs(name: str) -> list[torch.Tensor]:
        with torch.no_grad():
            return [output.float() for output in calls[name].outputs()]

    for m in measurements:
        twin = CONTESTANTS[m.name].same_as
        if m.name not in calls or twin not in calls:
            continue
        m.difference = max(
            ((ours - theirs).abs().max() / theirs.abs().max()).item()
            for ours, theirs in zip(outputs(m.name), outputs(twin), strict=True)
        )
        if not m.difference <= TOLERANCE[dtype]:
            m.left_out = f'failed: differs from {twin} by {m.difference:.1e}'

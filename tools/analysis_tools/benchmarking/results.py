"""What follows from the measurements: slopes on log-log axes, the least time of a call."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cases import Group
from .run import Measurement
from .timing import quartiles


@dataclass(frozen=True)
class Slope:
    """How time or memory of a contestant grows: with the slope-th power of the axis.

    ``first`` and ``last`` are the ends of the axis between which it is fitted.
    """

    group: str
    name: str
    mode: str
    measure: str
    axis: str
    slope: float
    first: float
    last: float


def slopes(groups: Iterable[Group], measurements: Sequence[Measurement]) -> list[Slope]:
    """Least-squares slopes on log-log axes, of time and peak memory.

    Args:
        groups: those with an axis are fitted.
        measurements: of :func:`.run.run`.

    Returns:
        One slope for each contestant, mode and measure with at least two places.
    """
    found = []
    for group in filter(lambda g: g.axis, groups):
        mine = [m for m in measurements if m.group == group.key]
        for name, mode in dict.fromkeys((m.name, m.mode) for m in mine):
            of_one = [m for m in mine if (m.name, m.mode) == (name, mode)]
            for measure, values in (('time', _times(of_one)), ('memory', _peaks(of_one))):
                if len(values) > 1:
                    ends = min(values), max(values)
                    settings = (group.key, name, mode, measure, group.axis)
                    found.append(Slope(*settings, _fit(values), *ends))
    return found


def _times(measurements: Iterable[Measurement]) -> dict[float, float]:
    return {m.place: quartiles(m.seconds)[0] for m in measurements if m.seconds}


def _peaks(measurements: Iterable[Measurement]) -> dict[float, float]:
    return {m.place: m.peak_bytes for m in measurements if m.peak_bytes}


def _fit(values: Mapping[float, float]) -> float:
    places, figures = np.log(list(values)), np.log(list(values.values()))
    return float(np.polyfit(places, figures, 1)[0])


def least_seconds(measurement: Measurement, rates: Mapping[str, float]) -> float:
    """Time that no implementation of these steps can undercut on this machine.

    The larger of the bytes that must move over the rate of a copy, and the FLOPs over the rate of
    a matrix product.

    Args:
        measurement: of one contestant.
        rates: of :func:`.roofline.measure_rates`.
    """
    by_copy = measurement.moved_bytes / rates['copy_bytes']
    return max(by_copy, (measurement.flops or 0) / rates['matmul_flops'])


def copy_share(measurement: Measurement, rates: Mapping[str, float]) -> float:
    """Bytes that must move, inputs and outputs, over time, as a share of the rate of a copy.

    Args:
        measurement: of one contestant that ran.
        rates: of :func:`.roofline.measure_rates`.
    """
    seconds = quartiles(measurement.seconds)[0]
    return measurement.moved_bytes / seconds / rates['copy_bytes']


def best(measurements: Iterable[Measurement], measure: str) -> Measurement | None:
    """The fastest or leanest of several; ``None`` where none was measured.

    Args:
        measurements: candidates.
        measure: 'time' or 'memory'.
    """

    def figure(m: Measurement) -> float:
        if measure == 'memory':
            return m.peak_bytes or math.inf
        return quartiles(m.seconds)[0] if m.seconds else math.inf

    found = min(measurements, key=figure, default=None)
    return None if found is None or math.isinf(figure(found)) else found

"""The speed and memory that are aimed at, and whether what is measured meets them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import BACKWARD, FORWARD, MODES, Case, Group, Size, layers, models
from .measure import Measurement, Options, quartiles, run

SPEED, TIME, MEMORY, SLOPE = 'times as fast', 'of the time', 'of the memory', 'slope of time'


@dataclass(frozen=True)
class Target:
    """One figure that is aimed at."""

    what: str  # label in the table
    kind: str  # SPEED, at least the bound; or TIME, MEMORY or SLOPE, at most
    bound: float
    place: tuple[str, str]  # group and label of the case
    mode: str
    ours: str
    baselines: tuple[str, ...] = ()  # the best of these is compared with


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; ``measured`` is ``None`` where nothing was."""

    target: Target
    measured: float | None = None
    lower: float | None = None
    upper: float | None = None
    baseline: str = ''
    ours: Measurement | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.measured is None:
            return None
        bound = self.target.bound
        return self.measured >= bound if self.target.kind == SPEED else self.measured <= bound


class Plan:
    """Groups to measure and the targets that they decide."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.groups: list[Group] = []
        self.targets: list[Target] = []
        self._window()
        self._dense_map()
        self._global()
        self._sag()
        self._backbones()
        self._detection()

    def _add(
        self, what: str, kind: str, bound: float, case: Case, mode: str, ours: str, *others: str
    ) -> None:
        """Adds a target of the last group."""
        what, place = f'{what}: {ours}, {case.label}, {mode}', (self.groups[-1].key, case.label)
        self.targets.append(Target(what, kind, bound, place, mode, ours, others))

    def _window(self) -> None:
        grid, batch = ((14, 14), 1) if self.quick else (layers.MAP, 8)
        bounds = {3: (3.5, 2.5), 7: (9, 6), 11: (12, 6), 15: (20, 6)}
        loop, sasas = 'QnA, loop over offsets', layers.SASAS
        cases = []
        for k in bounds:
            names = ('QnA', *([loop] if k == 3 else []), *sasas, *layers.UNFOLDS)
            names += layers.SWINS if k <= 7 else ()
            cases.append(Case(Size(batch, *grid, layers.CHANNELS, layers.QNA_HEADS, k), names))
        text = layers.WINDOW_TEXT
        self.groups.append(Group('window', 'QnA layer', text, sasas[0], cases, 'window side'))
        for case in cases:
            for mode, bound in zip(MODES, bounds[case.size.kernel_size], strict=True):
                what = 'against the better unfold attention'
                self._add(what, SPEED, bound, case, mode, 'QnA', *sasas)
        for case, ours, bound in ((cases[1], 'QnA', 0.1), (cases[0], loop, 0.25)):
            for mode in MODES:
                what = 'peak memory against unfold attention'
                self._add(what, MEMORY, bound, case, mode, ours, *sasas)
        for case in cases[:2]:
            self._add("against Swin's windowed SDPA", SPEED, 3, case, FORWARD, 'QnA', *layers.SWINS)

    def _dense_map(self) -> None:
        grid = (13, 22) if self.quick else layers.DENSE_MAP
        unfolds, bounds = layers.UNFOLDS, {3: 2, 7: 5.5, 11: 6}
        sizes = [Size(1, *grid, layers.CHANNELS, layers.QNA_HEADS, k) for k in bounds]
        cases = [Case(size, ('QnA', *unfolds), (BACKWARD,)) for size in sizes]
        title, text = 'QnA layer on the map of a detector', layers.WINDOW_TEXT
        self.groups.append(Group('dense_map', title, text, unfolds[0], cases, 'window side'))
        for case in cases:
            what, k = 'against the better unfold attention', case.size.kernel_size
            self._add(what, SPEED, bounds[k], case, BACKWARD, 'QnA', *unfolds)

    def _global(self) -> None:
        middle, others = (14, (7, 28)) if self.quick else (112, (56, 224, 448))
        (ours, plain, folded), quadratic = layers.KEY_ONLY, layers.QUADRATIC
        size = Size(1, middle, middle, layers.CHANNELS)
        forward = Case(size, (*layers.KEY_ONLY, *quadratic), (FORWARD,))
        backward = Case(size, layers.KEY_ONLY, (BACKWARD,))
        rest = [Case(Size(1, n, n, layers.CHANNELS), (ours,), (FORWARD,)) for n in others]
        cases, text = [forward, backward, *rest], 'One head, 64 channels.'
        group = Group('global', 'Key-only attention', text, quadratic[0], cases, 'positions')
        self.groups.append(group)
        for bound, other in zip((40.0, 60.0), quadratic, strict=True):
            self._add(f'against {other}', SPEED, bound, forward, FORWARD, ours, other)
        self._add('slope of time against positions', SLOPE, 1.1, forward, FORWARD, ours)
        for case, mode, bound in ((forward, FORWARD, 1.8), (backward, BACKWARD, 2.3)):
            self._add('folded against plain', SPEED, bound, case, mode, folded, plain)

    def _sag(self) -> None:
        sides = dict.fromkeys(layers.SAG_SIDES, 32) if self.quick else layers.SAG_SIDES
        self.groups.append(layers.sag_group(sides, 1 if self.quick else 8, (FORWARD,)))
        for case, bound in zip(self.groups[-1].cases, (2, 1.6, 2.3), strict=True):
            self._add('against one by one', SPEED, bound, case, FORWARD, 'SAG', 'SAG, one by one')

    def _backbones(self) -> None:
        side, batch = (64, 1) if self.quick else (models.SIDE, 8)
        aims = (
            (0.85, 'QnA-ViT-tiny', models.RESNETS),
            (0.6, 'QnA-ViT-tiny', models.SWINS),
            (1.1, 'QnA-ViT-tiny 7x7', ('QnA-ViT-tiny',)),
            (0.85, 'LinGlo-b2', models.SWINS),
            (0.7, 'SAG-small', models.SAG_FORMS[2:]),
        )
        ours = ('QnA-ViT-tiny', 'QnA-ViT-tiny 7x7', 'LinGlo-b2', *models.SAG_FORMS)
        names = (*ours, *models.RESNETS, *models.SWINS)
        self.groups.append(models.classification_group(batch, side, names))
        (case,) = self.groups[-1].cases
        for bound, name, others in aims:
            self._add(f'over {others[0]}', TIME, bound, case, FORWARD, name, *others)

    def _detection(self) -> None:
        size = Size(1, *((96, 128) if self.quick else models.PADDED_IMAGE))
        case = Case(size, ('LinGlo-b2', 'PVTv2-B2'), (FORWARD,))
        title = 'Backbones at the size of detection'
        self.groups.append(models.backbone_group('detection', title, [case], 'PVTv2-B2'))
        self._add('over PVTv2-B2', TIME, 0.5, case, FORWARD, *case.names)
        names = ('RetinaNet, LinGlo-b2', 'RetinaNet, Swin-T')
        image = (96, 125) if self.quick else models.IMAGE
        self.groups.append(models.detector_group(image, 1, names, (BACKWARD,)))
        step = self.groups[-1].cases[0]
        self._add(f'over {names[1]}', TIME, 0.9, step, BACKWARD, *names)


@dataclass(frozen=True)
class Slope:
    """Time or memory grow with the slope-th power of the axis, between ``first`` and ``last``."""

    group: str
    name: str
    mode: str
    measure: str
    axis: str
    slope: float
    first: float
    last: float


def slopes(groups: Iterable[Group], measurements: Sequence[Measurement]) -> list[Slope]:
    """Least-squares slopes on log-log axes, of time and peak memory, in groups that have an axis.

    There is one for each contestant, mode and measure with at least two places.
    """
    axes = {group.key: group.axis for group in groups if group.axis}
    curves: dict[tuple[str, str, str, str], dict[float, float]] = {}
    for m in measurements:
        for measure in ('time', 'memory') if m.group in axes else ():
            if figure := _figure(m, measure):
                curves.setdefault((m.group, m.name, m.mode, measure), {})[m.place] = figure
    found = []
    for key, values in curves.items():
        if len(values) > 1:
            x, y = np.log(list(values)), np.log(list(values.values()))
            slope = float(np.polyfit(x, y, 1)[0])
            found.append(Slope(*key, axes[key[0]], slope, min(values), max(values)))
    return found


def _figure(m: Measurement, measure: str) -> float:
    """0 where nothing was measured."""
    return (m.peak_bytes or 0) if measure == 'memory' else m.time if m.seconds else 0


def judge(
    targets: Sequence[Target], measurements: Sequence[Measurement], slopes: Sequence[Slope]
) -> list[Verdict]:
    """Compares each target with what was measured."""
    found = {(m.group, m.case, m.mode, m.name): m for m in measurements}
    return [_verdict(target, found, slopes) for target in targets]


def _verdict(
    target: Target, found: Mapping[tuple, Measurement], slopes: Sequence[Slope]
) -> Verdict:
    ours = found.get((*target.place, target.mode, target.ours))
    if ours is None or ours.left_out is not None:
        return Verdict(target)
    if target.kind == SLOPE:
        key = (ours.group, ours.name, ours.mode, 'time')
        fitted = {(s.group, s.name, s.mode, s.measure): s.slope for s in slopes}
        return Verdict(target, fitted.get(key), ours=ours)
    measure = 'memory' if target.kind == MEMORY else 'time'
    others = [found.get((*target.place, target.mode, name)) for name in target.baselines]
    ran = [m for m in others if m is not None and _figure(m, measure)]
    if not ran or not _figure(ours, measure):
        return Verdict(target)
    best = min(ran, key=lambda m: _figure(m, measure))
    if measure == 'memory':
        share = _figure(ours, measure) / _figure(best, measure)
        return Verdict(target, share, baseline=best.name, ours=ours)
    ratios = [b / o for b, o in zip(best.seconds, ours.seconds, strict=True)]
    ratios = ratios if target.kind == SPEED else [1 / ratio for ratio in ratios]
    return Verdict(target, *quartiles(ratios), baseline=best.name, ours=ours)


def find_slower(verdicts: Sequence[Verdict], earlier: Iterable[Mapping]) -> dict[Target, str]:
    """Finds the targets at which this run is worse than an earlier one by more than the spread.

    Args:
        verdicts: of this run.
        earlier: the entries 'targets' of the report.json of the earlier run.

    Returns:
        A line for each. The quartiles of both runs must not overlap; figures without quartiles
        (memory, slopes) must differ by more than 5 %.
    """
    lines, before = {}, {entry['what']: entry for entry in earlier}
    for verdict in verdicts:
        target, old = verdict.target, before.get(verdict.target.what)
        if old is None or old['measured'] is None or verdict.measured is None:
            continue
        low, high = _range(verdict.measured, verdict.lower, verdict.upper)
        old_low, old_high = _range(old['measured'], old['lower'], old['upper'])
        if high < old_low if target.kind == SPEED else low > old_high:
            lines[target] = (
                f'{target.what}: {verdict.measured:.3g} {target.kind}, was {old["measured"]:.3g}'
            )
    return lines


def confirm_slower(
    slower: Mapping[Target, str],
    groups: Sequence[Group],
    options: Options,
    earlier: Iterable[Mapping],
) -> list[str]:
    """Measures what :func:`find_slower` found a second time, since other processes change ratios.

    Returns:
        The lines of those that are slower again, and of peak memory, which does not fluctuate.
    """
    again = [target for target in slower if target.kind != MEMORY]
    groups = [group for group in groups if group.key in {target.place[0] for target in again}]
    measurements = run(groups, replace(options, measures_memory=False)) if groups else []
    verdicts = judge(again, measurements, slopes(groups, measurements))
    confirmed = find_slower(verdicts, earlier)
    return [
        confirmed.get(t, line) for t, line in slower.items() if t in confirmed or t not in again
    ]


def _range(measured: float, lower: float | None, upper: float | None) -> tuple[float, float]:
    if lower is None or upper is None:
        return measured / 1.025, measured * 1.025
    return lower, upper

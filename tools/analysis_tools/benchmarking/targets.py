"""``benchmark.py targets``: the speed and memory that are aimed at, beside what is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import backbones, layers
from .attention import DENSE_MAP, MAP, WINDOW_TEXT, sag_group
from .backbone import DETECTION, SIDE, classification_group
from .backbone import TEXT as BACKBONE_TEXT
from .cases import BACKWARD, FORWARD, MODES, Case, Group, Size
from .detector import step_group
from .results import Slope, best
from .run import Measurement
from .timing import quartiles

CHANNELS, QNA_HEADS = 64, 8
SPEED, TIME, MEMORY, SLOPE = 'times as fast', 'of the time', 'of the memory', 'slope of time'


@dataclass(frozen=True)
class Target:
    """One figure that is aimed at.

    Args:
        what: what it is about, for the table.
        kind: 'times as fast' (at least the bound), 'of the time', 'of the memory' or 'slope of
            time' (at most).
        bound: the figure.
        place: group and label of the case.
        mode: 'forward' or 'forward+backward'.
        ours: the contestant.
        baselines: what it is compared with: the best of these.
    """

    what: str
    kind: str
    bound: float
    place: tuple[str, str]
    mode: str
    ours: str
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; ``measured`` is ``None`` where nothing was."""

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
        if self.target.kind == SPEED:
            return self.measured >= self.target.bound
        return self.measured <= self.target.bound


class Plan:
    """Groups to measure and the targets that they decide, at full or at small sizes.

    Args:
        quick: small sizes.
    """

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
        self,
        what: str,
        kind: str,
        bound: float,
        group: Group,
        case: Case,
        mode: str,
        ours: str,
        *baselines: str,
    ) -> None:
        what = f'{what}: {ours}, {case.label}, {mode}'
        place = (group.key, case.label)
        self.targets.append(Target(what, kind, bound, place, mode, ours, baselines))

    def _window(self) -> None:
        grid, batch = ((14, 14), 1) if self.quick else (MAP, 8)
        unfolds, swins = (layers.UNFOLD, layers.UNFOLD_LAST), (layers.SWIN, layers.SWIN_SHIFTED)
        sasas = (layers.SASA, layers.SASA_LAST)
        bounds = {3: (3.5, 2.5), 7: (9, 6), 11: (12, 6), 15: (20, 6)}
        cases = []
        for k in bounds:
            exact = (layers.QNA_EXACT,) if k == 3 else ()
            names = (layers.QNA, *exact, *sasas, *unfolds, *(swins if k <= 7 else ()))
            cases.append(Case(Size(batch, *grid, CHANNELS, QNA_HEADS, k), names))
        group = Group('window', 'QnA layer', WINDOW_TEXT, layers.SASA, cases, 'window side')
        self.groups.append(group)
        for case in cases:
            for mode, bound in zip(MODES, bounds[case.size.kernel_size], strict=True):
                name = 'against the better unfold attention'
                self._add(name, SPEED, bound, group, case, mode, layers.QNA, *sasas)
        for case, ours, bound in ((cases[1], layers.QNA, 0.1), (cases[0], layers.QNA_EXACT, 0.25)):
            for mode in MODES:
                name = 'peak memory against unfold attention'
                self._add(name, MEMORY, bound, group, case, mode, ours, *sasas)
        for case in cases[:2]:
            name = "against Swin's windowed SDPA"
            self._add(name, SPEED, 3, group, case, FORWARD, layers.QNA, *swins)

    def _dense_map(self) -> None:
        grid = (13, 22) if self.quick else DENSE_MAP
        unfolds = (layers.UNFOLD, layers.UNFOLD_LAST)
        bounds = {3: 2, 7: 5.5, 11: 6}
        sizes = [Size(1, *grid, CHANNELS, QNA_HEADS, k) for k in bounds]
        cases = [Case(size, (layers.QNA, *unfolds), (BACKWARD,)) for size in sizes]
        title = 'QnA layer on the map of a detector'
        group = Group('dense_map', title, WINDOW_TEXT, layers.UNFOLD, cases, 'window side')
        self.groups.append(group)
        for case in cases:
            name, bound = 'against the better unfold attention', bounds[case.size.kernel_size]
            self._add(name, SPEED, bound, group, case, BACKWARD, layers.QNA, *unfolds)

    def _global(self) -> None:
        middle, others = (14, (7, 28)) if self.quick else (112, (56, 224, 448))
        plain, folded = layers.KEY_ONLY_PLAIN, layers.KEY_ONLY_FOLDED
        quadratic = (layers.SDPA, layers.DOT_PRODUCT)
        names = (layers.KEY_ONLY, plain, folded)
        size = Size(1, middle, middle, CHANNELS)
        cases = [Case(size, (*names, *quadratic), (FORWARD,)), Case(size, names, (BACKWARD,))]
        cases += [
            Case(Size(1, side, side, CHANNELS), (layers.KEY_ONLY,), (FORWARD,)) for side in others
        ]
        text = 'One head, 64 channels.'
        group = Group('global', 'Key-only attention', text, layers.SDPA, cases, 'positions')
        self.groups.append(group)
        forward, backward = cases[:2]
        for bound, other in zip((40, 60), quadratic, strict=True):
            self._add(f'against {other}', SPEED, bound, group, forward, FORWARD, names[0], other)
        name = 'slope of time against positions'
        self._add(name, SLOPE, 1.1, group, forward, FORWARD, layers.KEY_ONLY)
        for case, mode, bound in ((forward, FORWARD, 1.8), (backward, BACKWARD, 2.3)):
            self._add('folded against plain', SPEED, bound, group, case, mode, folded, plain)

    def _sag(self) -> None:
        sides, batch = {'small': 224, 'tiny': 224, 'CIFAR': 32}, 8
        if self.quick:
            sides, batch = dict.fromkeys(sides, 32), 1
        group = sag_group(sides, batch, (FORWARD,))
        self.groups.append(group)
        for case, bound in zip(group.cases, (2, 1.6, 2.3), strict=True):
            names = (layers.SAG, layers.SAG_ONE_BY_ONE)
            self._add('against one by one', SPEED, bound, group, case, FORWARD, *names)

    def _backbones(self) -> None:
        b = backbones
        resnets, swins = (b.RESNET, b.RESNET_LAST), (b.SWIN, b.SWIN_SDPA)
        sags = (b.SAG_SMALL, b.SAG_SMALL_ONE, b.SAG_SMALL_PUBLISHED)
        ours = (b.QNA_TINY, b.QNA_TINY_7, b.LINGLO_B2, *sags)
        side, batch = (64, 1) if self.quick else (SIDE, 8)
        group = classification_group(batch, side, (*ours, *resnets, *swins))
        self.groups.append(group)
        for bound, name, baselines in (
            (0.85, b.QNA_TINY, resnets),
            (0.6, b.QNA_TINY, swins),
            (1.1, b.QNA_TINY_7, (b.QNA_TINY,)),
            (0.85, b.LINGLO_B2, swins),
            (0.7, b.SAG_SMALL, (b.SAG_SMALL_PUBLISHED,)),
        ):
            what = f'over {baselines[0]}'
            self._add(what, TIME, bound, group, group.cases[0], FORWARD, name, *baselines)

    def _detection(self) -> None:
        b, size = backbones, Size(1, *((96, 128) if self.quick else DETECTION))
        cases = [Case(size, (b.LINGLO_B2, b.PVT), (FORWARD,))]
        options = dict(images=True, autocast=True, least_rounds=3)
        title = 'Backbones at the size of detection'
        group = Group('detection', title, BACKBONE_TEXT, b.PVT, cases, **options)
        self._add(f'over {b.PVT}', TIME, 0.5, group, cases[0], FORWARD, b.LINGLO_B2, b.PVT)
        step = step_group(self.quick)
        names = step.cases[0].names
        self._add(f'over {names[1]}', TIME, 0.9, step, step.cases[0], BACKWARD, *names)
        self.groups += [group, step]


def judge(
    targets: Sequence[Target], measurements: Sequence[Measurement], slopes: Sequence[Slope]
) -> list[Verdict]:
    """Sets each target beside what was measured.

    Args:
        targets: of a :class:`Plan`.
        measurements: of its groups.
        slopes: of the same.
    """
    found = {(m.group, m.case, m.mode, m.name): m for m in measurements}
    return [_verdict(target, found, slopes) for target in targets]


def _verdict(
    target: Target, found: Mapping[tuple, Measurement], slopes: Sequence[Slope]
) -> Verdict:
    ours = found.get((*target.place, target.mode, target.ours))
    if ours is None or ours.left_out is not None:
        return Verdict(target)
    if target.kind == SLOPE:
        key = (target.place[0], target.ours, target.mode, 'time')
        fitted = [s.slope for s in slopes if (s.group, s.name, s.mode, s.measure) == key]
        return Verdict(target, *fitted[:1], ours=ours)
    candidates = [found.get((*target.place, target.mode, name)) for name in target.baselines]
    measure = 'memory' if target.kind == MEMORY else 'time'
    baseline = best(filter(None, candidates), measure)
    if baseline is None or (measure == 'memory' and not ours.peak_bytes):
        return Verdict(target)
    if measure == 'memory':
        share = ours.peak_bytes / baseline.peak_bytes
        return Verdict(target, share, baseline=baseline.name, ours=ours)
    ratios = [b / o for b, o in zip(baseline.seconds, ours.seconds, strict=True)]
    ratios = ratios if target.kind == SPEED else [1 / ratio for ratio in ratios]
    return Verdict(target, *quartiles(ratios), baseline=baseline.name, ours=ours)

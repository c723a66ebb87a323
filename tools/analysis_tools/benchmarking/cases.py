"""What is compared with what: contestants, the sizes they run at, and groups of such cases.

A contestant is a function from a :class:`Size` to a module, registered with :func:`contestant`.
The first line of its docstring says what it computes, and begins with "Ours" for what this package
is about. All contestants of a case get the same input; layers give outputs of the same size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

FORWARD, BACKWARD = 'forward', 'forward+backward'
MODES = (FORWARD, BACKWARD)


class Unavailable(Exception):
    """A contestant that cannot run here; the message says why. The others run without it."""


@dataclass(frozen=True)
class Size:
    """What a contestant is built for; maps are (B, H, W, C), images (B, 3, H, W)."""

    batch: int
    height: int
    width: int
    channels: int = 3
    heads: int = 1
    kernel_size: int = 0
    arch: str = ''
    training: bool = False

    @property
    def positions(self) -> int:
        """Positions of one map, or pixels of one image."""
        return self.height * self.width

    def describe(self) -> str:
        """Batch and what differs between the cases of a group, for a table's row."""
        parts = [self.arch] if self.arch else []
        if self.kernel_size:
            parts.append(f'k = {self.kernel_size}')
        grid = f'{self.height} x {self.width}'
        parts.append(f'{grid} x {self.channels}' if self.channels != 3 else grid)
        return ', '.join([*parts, f'batch {self.batch}'])


@dataclass(frozen=True)
class Contestant:
    """One way to compute something."""

    name: str
    summary: str
    build: Callable[[Size], nn.Module]
    same_as: str | None

    @property
    def is_ours(self) -> bool:
        """Whether it is a product of this package."""
        return self.summary.startswith('Ours')


CONTESTANTS: dict[str, Contestant] = {}


def contestant(name: str, same_as: str | None = None) -> Callable:
    """Decorator that registers a builder.

    Args:
        name: name in tables and plots.
        same_as: contestant that gives the same numbers from the same start values: compared with
            it before anything is timed.
    """

    def register(build: Callable[[Size], nn.Module]) -> Callable[[Size], nn.Module]:
        if name in CONTESTANTS:
            raise ValueError(f'contestant {name!r} is registered twice')
        CONTESTANTS[name] = Contestant(name, build.__doc__.splitlines()[0], build, same_as)
        return build

    return register


@dataclass(frozen=True)
class Case:
    """Contestants at one size.

    Args:
        size: the size.
        names: contestants.
        modes: of :data:`MODES`.
        shapes: shapes of the inputs, where it is not one map of ``size``.
    """

    size: Size
    names: Sequence[str]
    modes: Sequence[str] = MODES
    shapes: Sequence[tuple[int, ...]] | None = None

    @property
    def label(self) -> str:
        """Row label, unique in its group."""
        return self.size.describe()

    def input_shapes(self, images: bool) -> Sequence[tuple[int, ...]]:
        """Shapes of the inputs."""
        s = self.size
        grid = (s.height, s.width)
        default = (s.batch, 3, *grid) if images else (s.batch, *grid, s.channels)
        return self.shapes or [default]


@dataclass(frozen=True)
class Group:
    """Cases that share a table and a figure.

    Args:
        key: short name, for ``--only`` and file names.
        title: heading.
        text: what a reader must know to judge the figures.
        baseline: contestant that speed and memory of the others are compared with.
        cases: the cases.
        axis: what cases differ in: 'positions', 'pixels', 'window side', or '' for bars.
        images: inputs are (B, 3, H, W), without gradient; layers' maps are (B, H, W, C), with.
        autocast: other types than float32 by autocast, as in training, not by conversion.
        least_rounds: rounds that are run however long they take.
    """

    key: str
    title: str
    text: str
    baseline: str
    cases: Sequence[Case]
    axis: str = ''
    images: bool = False
    autocast: bool = False
    least_rounds: int = 5

    def place(self, case: Case) -> float:
        """Where a case stands on the group's axis."""
        return float(case.size.kernel_size if self.axis == 'window side' else case.size.positions)

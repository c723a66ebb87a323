"""Time and memory of our attention layers, backbones and detectors, compared with others'.

``tools/analysis_tools/benchmark.py`` and ``gpu_report.py`` run it. It is part of a clone and of an
editable installation, but not of the wheel. In reading order:

- here: what a contestant, a case and a group of cases are;
- ``layers``, ``models``: the contestants, as tables, and the sizes at which they are compared;
  ``modules``: layers that exist only for the comparison;
- ``targets``: the figures that are aimed at;
- ``measure``: one call, and the run over all groups with interleaved timing; ``machine``: timer,
  memory allocator, peak memory, and the rates that the machine reaches;
- ``report``: Markdown, JSON and pictures;
- ``gpu``: whether the kernels are correct on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

FORWARD, BACKWARD = 'forward', 'forward+backward'
MODES = (FORWARD, BACKWARD)


class Unavailable(Exception):
    """A contestant cannot run here; the message says why. The others run without it."""


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

    def describe(self) -> str:
        """Label of a table's row: batch, and what differs between the cases of a group."""
        parts = [self.arch] if self.arch else []
        if self.kernel_size:
            parts.append(f'k = {self.kernel_size}')
        grid = f'{self.height} x {self.width}'
        parts.append(f'{grid} x {self.channels}' if self.channels != 3 else grid)
        return ', '.join([*parts, f'batch {self.batch}'])


Builder = Callable[[Size], nn.Module]


@dataclass(frozen=True)
class Contestant:
    """One way to compute something.

    All contestants of a case get the same input; layers give outputs of the same size. If one is
    the ``same_as`` another, their outputs are compared before anything is timed.
    """

    summary: str  # what it computes; begins with "Ours" for what this package is about
    build: Builder
    same_as: str | None = None  # computes the same from the same initial values

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this package."""
        return self.summary.startswith('Ours')


@dataclass(frozen=True)
class Case:
    """Contestants at one size."""

    size: Size
    names: Sequence[str]  # contestants
    modes: Sequence[str] = MODES
    shapes: Sequence[tuple[int, ...]] | None = None  # of the inputs, if not one map of ``size``

    @property
    def label(self) -> str:
        """Label of the row, unique in its group."""
        return self.size.describe()


@dataclass(frozen=True)
class Group:
    """Cases that share a table and a picture."""

    key: str  # short name, for ``--only`` and file names
    title: str
    text: str  # what a reader must know to judge the figures
    baseline: str  # contestant with which speed and memory of the others are compared
    cases: Sequence[Case]
    axis: str = ''  # what cases differ in: 'positions', 'pixels', 'window side'; '' for bars
    images: bool = False  # inputs (B, 3, H, W) without gradient; layers' maps (B, H, W, C), with
    autocast: bool = False  # types other than float32 by autocast, as in training
    least_rounds: int = 5  # that are run however long they take
    paper_rates: Mapping[str, float] = field(default_factory=dict)  # images/s by contestant

    def place(self, case: Case) -> float:
        """Position of a case on the group's axis."""
        size = case.size
        return float(size.kernel_size if self.axis == 'window side' else size.height * size.width)

    def input_shapes(self, case: Case) -> Sequence[tuple[int, ...]]:
        """Shapes of a case's inputs."""
        size, grid = case.size, (case.size.height, case.size.width)
        one_map = (size.batch, 3, *grid) if self.images else (size.batch, *grid, size.channels)
        return case.shapes or [one_map]

"""Says what was found in own data: pictures, objects, classes, sizes, flaws."""

import math
from collections import Counter

from .records import Flaws, OwnData

SHOWN = 5  # flaws of a kind that are printed; the report file lists all
CLASSES_SHOWN = 30
BAR = 40  # characters
UNITS = dict(detection='objects', segmentation='pictures', classification='pictures')


def summarize(data: OwnData) -> list[str]:
    """Lines with the numbers of pictures and objects, classes and sizes.

    Args:
        data: split into training and validation.
    """
    train, val = data.counts('train'), data.counts('val')
    numbers = [f'{len(data.split(split)):,} for {use}' for split, use in _USES]
    lines = [f'pictures: {len(data.samples):,} ({", ".join(numbers)})', _picture_sizes(data)]
    if data.task == 'detection':
        lines.append(f'objects: {train.total():,} for training, {val.total():,} for validation')
    width = max(map(len, data.classes), default=0)
    lines.append(f'classes: {len(data.classes)} ({UNITS[data.task]} for training, validation)')
    for name in data.classes[:CLASSES_SHOWN]:
        lines.append(f'  {name:<{width}}  {train[name]:>7,} {val[name]:>7,}')
    if len(data.classes) > CLASSES_SHOWN:
        lines.append(f'  and {len(data.classes) - CLASSES_SHOWN} more')
    return [*lines, *_histogram(data)] if data.task == 'detection' else lines


_USES = (('train', 'training'), ('val', 'validation'))


def _picture_sizes(data: OwnData) -> str:
    sides = sorted(max(sample.size) for sample in data.samples)
    return f'longer sides: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}'


def box_side(corners: tuple[float, float, float, float]) -> float:
    """Square root of the area of a box."""
    x1, y1, x2, y2 = corners
    return math.sqrt(max(0.0, (x2 - x1) * (y2 - y1)))


def _histogram(data: OwnData) -> list[str]:
    """Sizes of the boxes in classes of a factor of two."""
    sides = [box_side(box.corners) for sample in data.samples for box in sample.boxes]
    counts = Counter(int(math.log2(max(side, 1))) for side in sides)
    if not counts:
        return []
    lines = ['box sizes (square root of the area, in pixels):']
    for power in range(min(counts), max(counts) + 1):
        bar = '#' * math.ceil(BAR * counts[power] / max(counts.values()))
        lines.append(
            f'  {2**power:>5} to {2 ** (power + 1):>5}  {counts[power]:>7,}  {bar}'.rstrip()
        )
    return lines


def list_flaws(flaws: Flaws, limit: int | None = SHOWN) -> list[str]:
    """Lines with each kind of flaw, what is done with it, and the files.

    Args:
        flaws: what was found.
        limit: files of a kind that are listed; ``None`` for all.
    """
    lines = []
    for kind, rule, found in flaws.by_kind():
        lines.append(f'{kind}: {len(found):,}; {rule}')
        lines += [f'  {flaw}' for flaw in found[:limit]]
        if limit is not None and len(found) > limit:
            lines.append(f'  and {len(found) - limit:,} more')
    return lines

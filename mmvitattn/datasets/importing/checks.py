"""Checks pictures and boxes of own data, and repairs or drops what the rules say."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ...errors import UnreadableError
from .files import probe
from .records import Box, Corners, Flaws, OwnData, Sample

THREADS = 4  # decoding releases Python's lock
SAME_SHAPE = 0.01  # tolerated difference of proportions
TOLERANCE = 1.0  # pixels; tools differ in where they start to count
FEW = 10  # objects of a class, or pictures of it
Point = Callable[[float, float], tuple[float, float]]
Result = TypeVar('Result')


def in_threads(function: Callable[[Path], Result], paths: list[Path]) -> Iterable[Result]:
    """Results of a function for files, in order, from several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(function, paths)


def check_pictures(
    data: OwnData, flaws: Flaws, progress: Callable[[int, int], None] | None = None
) -> None:
    """Decodes every picture, sets sizes, and brings boxes to upright pixels.

    Args:
        data: the data; pictures that cannot be used are removed.
        flaws: is extended.
        progress: called with the number of pictures that are done and the total.
    """
    kept = []
    probed = in_threads(_probe_or_error, [sample.picture for sample in data.samples])
    for done, (sample, result) in enumerate(zip(data.samples, probed, strict=True), start=1):
        if isinstance(result, UnreadableError):
            reason = str(result).removeprefix(f'{sample.picture} ')
            flaws.add('picture cannot be read', sample.picture, reason)
        elif _fit_to_picture(sample, *result, flaws):
            kept.append(sample)
        if progress is not None:
            progress(done, len(data.samples))
    data.samples = kept


def _probe_or_error(path: Path) -> tuple[tuple[int, int], int] | UnreadableError:
    try:
        return probe(path)
    except UnreadableError as error:
        return error


def _fit_to_picture(
    sample: Sample, stored: tuple[int, int], orientation: int, flaws: Flaws
) -> bool:
    """Sets size and orientation and brings the boxes to pixels; whether that is possible."""
    upright = stored[::-1] if orientation > 4 else stored
    sample.size, sample.orientation = upright, orientation
    stated = sample.stated_size or upright
    width, height = upright
    turned = orientation > 4 and stored != upright and stated == stored
    if orientation > 1:
        detail = 'the boxes as well' if turned and sample.boxes else ''
        flaws.add('EXIF rotation', sample.picture, detail)
    if sample.mask and sample.mask_size not in (upright, stored):
        flaws.add('mask of another size', sample.mask, f'{sample.mask_size} for {upright}')
        return False
    if sample.relative:
        _move(sample.boxes, lambda x, y: (x * width, y * height))
    elif turned:
        _move(sample.boxes, turn(orientation, *stored))
    elif stated != upright:
        detail = f'{stated[0]} x {stated[1]} stated, {width} x {height} in {sample.picture}'
        flaws.add('size differs from the file', sample.annotation, detail)
        x_scale, y_scale = width / stated[0], height / stated[1]
        if abs(x_scale / y_scale - 1) > SAME_SHAPE:
            return False
        _move(sample.boxes, lambda x, y: (x * x_scale, y * y_scale))
    return True


def turn(orientation: int, width: int, height: int) -> Point:
    """Where a point of a stored picture is in the upright one.

    Args:
        orientation: the EXIF tag, 1 to 8.
        width: of the stored picture.
        height: of the stored picture.
    """
    moves: dict[int, Point] = {
        1: lambda x, y: (x, y),
        2: lambda x, y: (width - x, y),
        3: lambda x, y: (width - x, height - y),
        4: lambda x, y: (x, height - y),
        5: lambda x, y: (y, x),
        6: lambda x, y: (height - y, x),
        7: lambda x, y: (height - y, width - x),
        8: lambda x, y: (y, width - x),
    }
    return moves[orientation]


def _move(boxes: list[Box], point: Point) -> None:
    for box in boxes:
        x1, y1, x2, y2 = box.corners
        (a, b), (c, d) = point(x1, y1), point(x2, y2)
        if x2 > x1 and y2 > y1:
            box.corners = (min(a, c), min(b, d), max(a, c), max(b, d))
        else:  # a box without area stays one, also where a turn would swap its corners
            box.corners = (a, b, a, b)
        if isinstance(box.segmentation, dict):
            box.segmentation = None  # a run-length code cannot be moved
        elif box.segmentation:
            box.segmentation = [
                [value for pair in zip(p[::2], p[1::2], strict=True) for value in point(*pair)]
                for p in box.segmentation
            ]


def check_boxes(data: OwnData, flaws: Flaws) -> None:
    """Clips boxes to their pictures and removes those that are not usable.

    Args:
        data: with sizes of the pictures.
        flaws: is extended.
    """
    for sample in data.samples:
        kept, seen = [], set()
        for box in sample.boxes:
            key = (box.label, tuple(round(v, 2) for v in box.corners))
            if key in seen:
                flaws.add('object annotated twice', sample.annotation, _describe(box))
            elif _is_usable(box, sample, flaws):
                kept.append(box)
            seen.add(key)
        sample.boxes = kept


def _is_usable(box: Box, sample: Sample, flaws: Flaws) -> bool:
    """Clips a box; whether anything is left of it."""
    width, height = sample.size
    x1, y1, x2, y2 = box.corners
    size = f'the picture has {width} x {height} pixels'
    if x2 - x1 < 1 or y2 - y1 < 1:
        flaws.add('box without area', sample.annotation, _describe(box))
        return False
    clipped: Corners = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:
        flaws.add('box outside the picture', sample.annotation, f'{_describe(box)}; {size}')
        return False
    if max(abs(a - b) for a, b in zip(clipped, box.corners, strict=True)) > TOLERANCE + 1e-6:
        flaws.add('box partly outside the picture', sample.annotation, f'{_describe(box)}; {size}')
    box.corners = clipped
    if isinstance(box.segmentation, list):
        limits = (width, height)
        box.segmentation = [
            [min(max(v, 0.0), float(limits[i % 2])) for i, v in enumerate(polygon)]
            for polygon in box.segmentation
        ]
    return True


def _describe(box: Box) -> str:
    x1, y1, x2, y2 = box.corners
    return f'{box.label} from ({x1:.4g}, {y1:.4g}) to ({x2:.4g}, {y2:.4g})'


def check_classes(data: OwnData, flaws: Flaws) -> None:
    """Removes classes that never occur, and notes those that are rare.

    Args:
        data: split into training and validation.
        flaws: is extended.
    """
    counts = {split: data.counts(split) for split in ('train', 'val')}
    unit = 'objects' if data.task == 'detection' else 'pictures'
    if data.task != 'segmentation':  # masks contain the indices of the classes
        absent = [c for c in data.classes if not any(counts[s][c] for s in counts)]
        data.classes = [c for c in data.classes if c not in absent]
        for name in absent:
            flaws.add('class without objects', name)
    for name in data.classes:
        if counts['train'][name] < FEW or not counts['val'][name]:
            detail = f'{counts["train"][name]} {unit} for training, {counts["val"][name]} '
            flaws.add('class with few objects', name, f'{detail}for validation')
    folded = Counter(name.casefold() for name in data.classes)
    for name in data.classes:
        if folded[name.casefold()] > 1:
            flaws.add('class names that differ only in case', name)


def choose_names(samples: list[Sample], flaws: Flaws) -> None:
    """Sets file names that are unique in their folder, without regard to case and suffix.

    Args:
        samples: divided into training and validation.
        flaws: is extended.
    """
    taken: set[tuple[str, ...]] = set()
    for sample in samples:
        folder = (sample.split or '', sample.label or '')
        stem, suffix = sample.picture.stem, sample.picture.suffix.lower()
        if (*folder, stem.lower()) in taken:
            stem = f'{sample.picture.parent.name}__{stem}'
            while (*folder, stem.lower()) in taken:
                stem += '_'
            flaws.add('picture name is used twice', sample.picture, f'imported as {stem}{suffix}')
        taken.add((*folder, stem.lower()))
        sample.name = stem + suffix

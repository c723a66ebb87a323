"""Reads YOLO's text files: a line for each object, with fractions of width and height."""

import math
from pathlib import Path
from typing import Any

import yaml

from ...errors import UnreadableError, UsageError
from .files import SUFFIXES, read_text, source_folder, split_of, visible_files
from .records import Box, Flaws, OwnData, Sample

SPLITS = ('train', 'val', 'test')


def read_yolo(source: Path, flaws: Flaws) -> OwnData:
    """Reads the data set that a YAML file describes, or a folder with ``classes.txt``.

    ``images/x.jpg`` has its label in ``labels/x.txt``, or in ``x.txt`` in the same folder. A
    picture without this file is background, as in ultralytics. Lines are a class and a box, with
    or without a confidence, a polygon, or a box and key points, which are ignored.

    Args:
        source: the YAML file, or a folder that contains it or ``classes.txt``.
        flaws: is extended.

    Raises:
        UsageError: if there are no class names or no pictures.
    """
    root = source_folder(source)
    if source.is_file():
        description: Path | None = source
    else:
        found = [f for f in visible_files(root, {'.yaml', '.yml'}) if 'names' in _load(f)]
        description = min(found, key=lambda f: len(f.parts), default=None)
    if description:
        content = _load(description)
        classes = _names(content, description)
        pictures: dict[Path, str | None] = dict(_pictures(content, description, root))
        key_points = _key_points(content)
    else:
        classes = _class_file(root)
        pictures = {p: split_of(p.relative_to(root)) for p in visible_files(root, SUFFIXES)}
        key_points = 0
    if not pictures:
        raise UsageError(f'{source} has no pictures where {description or root} says')
    samples = []
    for path, split in pictures.items():
        file = _label_file(path)
        boxes = _read_labels(file, classes, key_points, flaws) if file.exists() else []
        if not boxes:
            flaws.add('picture without objects', path, '' if file.exists() else f'no {file}')
        samples.append(Sample(path, file, boxes, relative=True, split=split))
    return OwnData('detection', classes, samples)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, UnreadableError) as error:
        raise UsageError(f'{file} is not valid YAML: {error}') from None
    return content if isinstance(content, dict) else {}


def _names(content: dict[str, Any], file: Path) -> list[str]:
    """Class names in the order of their indices."""
    names = content.get('names')
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UsageError(
            f'{file}: names is {names!r}; write a list of the classes, or their indices from 0'
        )
    return [str(name).strip() for name in names]


def _class_file(root: Path) -> list[str]:
    files = [f for f in visible_files(root, {'.txt', '.names'}) if f.stem in ('classes', 'obj')]
    if not files:
        raise UsageError(f'{root} has neither a YAML file with the class names nor classes.txt')
    return [line.strip() for line in read_text(files[0]).splitlines() if line.strip()]


def _key_points(content: dict[str, Any]) -> int:
    """Numbers that follow the box in a line."""
    shape = content.get('kpt_shape')
    return math.prod(shape) if isinstance(shape, list) and len(shape) == 2 else 0


def _pictures(content: dict[str, Any], file: Path, root: Path) -> list[tuple[Path, str]]:
    """The pictures of each split."""
    found = []
    for split in SPLITS:
        entries = content.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            place = _place(str(entry), str(content.get('path') or ''), file, root)
            if place.is_dir():
                found += [(path, split) for path in visible_files(place, SUFFIXES)]
            else:  # a list of pictures
                lines = [line.strip() for line in read_text(place).splitlines()]
                paths = [_place(line, '', place, root) for line in lines if line]
                found += [(path, split) for path in paths]
    return found


def _place(entry: str, path: str, file: Path, root: Path) -> Path:
    """The file or folder of an entry, which may be relative to several folders.

    Exporting tools write ``../train/images`` for a folder that is inside of the data set.
    """
    inner = Path(*[part for part in Path(entry).parts if part not in ('..', '.', '/')])
    places = [file.parent / path / entry, file.parent / entry, root / inner]
    places += [root / Path(*inner.parts[i:]) for i in range(1, len(inner.parts))]
    for place in places:
        if place.exists():
            return place
    raise UsageError(f'{file} names {entry!r}, which is not in {root}')


def _label_file(picture: Path) -> Path:
    """The label file: images/ in the path is replaced by labels/, the last one."""
    parts = list(picture.parts)
    beside = picture.with_suffix('.txt')
    if 'images' in parts[:-1] and not beside.exists():
        position = len(parts) - 2 - parts[-2::-1].index('images')
        return Path(*parts[:position], 'labels', *parts[position + 1 :]).with_suffix('.txt')
    return beside


def _read_labels(file: Path, classes: list[str], key_points: int, flaws: Flaws) -> list[Box]:
    try:
        lines = read_text(file).splitlines()
    except UnreadableError as error:
        flaws.add('annotation file cannot be read', file, str(error))
        return []
    boxes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            boxes.append(_read_line(line, classes, key_points))
        except ValueError as error:
            flaws.add('annotation is incomplete', file, f'line {number}: {error}')
    return boxes


def _read_line(line: str, classes: list[str], key_points: int) -> Box:
    values = [float(word) for word in line.split()]
    if len(values) < 5 or not all(map(math.isfinite, values)):
        raise ValueError(f'{line!r} is not a class and four numbers')
    if values[0] not in range(len(classes)):
        raise ValueError(f'class {line.split()[0]}, but the names are 0 to {len(classes) - 1}')
    label, numbers = classes[int(values[0])], values[1:]
    if len(numbers) < 6 or len(numbers) == 4 + key_points:
        x, y, width, height = numbers[:4]
        return Box(label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    points = numbers[: len(numbers) // 2 * 2]  # a confidence may follow
    xs, ys = points[::2], points[1::2]
    return Box(label, (min(xs), min(ys), max(xs), max(ys)), segmentation=[points])

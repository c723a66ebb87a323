"""Reads COCO's JSON files: objects with boxes, polygons or run-length codes."""

import json
import math
from pathlib import Path
from typing import Any

from ...errors import UnreadableError, UsageError
from .files import PictureIndex, read_text, source_folder, split_of, visible_files
from .records import Box, Flaws, OwnData, Sample

PARTS = ('images', 'annotations', 'categories')


def read_coco(source: Path, flaws: Flaws) -> OwnData:
    """Reads one file, or all annotation files below a folder.

    A file whose name or folder contains 'train', 'val' or 'test' is that split.

    Args:
        source: the file or the folder.
        flaws: is extended.

    Raises:
        UsageError: if there is no annotation file, or several describe the same pictures.
    """
    root = source_folder(source)
    files = [source] if source.is_file() else visible_files(root, {'.json'})
    if any(file.stem.startswith('instances') for file in files):  # beside captions and key points
        files = [file for file in files if file.stem.startswith('instances')]
    index = PictureIndex(root if source.is_dir() or root.name != 'annotations' else root.parent)
    classes: dict[str, None] = {}
    samples: list[Sample] = []
    for file in files:
        try:
            content = load_coco(file)
        except UnreadableError as error:
            flaws.add('annotation file cannot be read', file, str(error).removeprefix(f'{file} '))
            continue
        samples += _read_file(file, content, index, split_of(file.relative_to(root)), flaws)
        classes |= dict.fromkeys(_categories(content).values())
    if not samples:
        reasons = ''.join(f'\n  {flaw.kind}: {flaw}' for flaw in flaws.found[:5])
        raise UsageError(f'{source} has no COCO annotations of pictures that exist{reasons}')
    owners: dict[Path, Path] = {}
    for sample in samples:
        other = owners.setdefault(sample.picture, sample.annotation)
        if other != sample.annotation:
            raise UsageError(
                f'{other} and {sample.annotation} both describe {sample.picture}; '
                'give the folder of one of them, or one file, as the source'
            )
    return OwnData('detection', list(classes), samples)


def load_coco(file: Path) -> dict[str, Any]:
    """Reads an annotation file.

    Raises:
        UnreadableError: if it is not JSON, or has other parts than COCO's.
    """
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise UnreadableError(f'{file} is not valid JSON: {error}') from None
    lists = isinstance(content, dict) and all(isinstance(content.get(p), list) for p in PARTS)
    if not lists or not all(isinstance(item, dict) for part in PARTS for item in content[part]):
        raise UnreadableError(f'{file} has no lists of objects {", ".join(PARTS)}')
    return content


def _categories(content: dict[str, Any]) -> dict[Any, str]:
    """Names by id, in the order of the file."""
    pairs = [(item.get('id'), item.get('name')) for item in content['categories']]
    return {key: str(name).strip() for key, name in pairs if _hashable(key) and name is not None}


def _hashable(key: Any) -> bool:
    return isinstance(key, int | str)


def _read_file(
    file: Path, content: dict[str, Any], index: PictureIndex, split: str | None, flaws: Flaws
) -> list[Sample]:
    categories = _categories(content)
    near = (file.parent, file.parent / 'images', *index.folders_of(split))
    by_id: dict[Any, Sample | None] = {}
    for item in content['images']:
        name, key = str(item.get('file_name', '')), item.get('id')
        if not _hashable(key) or key in by_id:
            flaws.add('annotation is incomplete', file, f'image {name!r} with the id {key!r}')
            continue
        path = index.find(name, *near)
        if path is None:
            flaws.add('picture is missing', file, f'it names {name!r}')
        by_id[key] = Sample(path, file, stated_size=_size(item), split=split) if path else None
    for item in content['annotations']:
        key, category = item.get('image_id'), item.get('category_id')
        box = _read_object(item, categories.get(category) if _hashable(category) else None)
        if box is None or not _hashable(key) or key not in by_id:
            what = {k: item.get(k) for k in ('id', 'image_id', 'category_id', 'bbox')}
            flaws.add('annotation is incomplete', file, f'{what}')
        elif sample := by_id[key]:
            sample.boxes.append(box)
    return [sample for sample in by_id.values() if sample]


def _size(item: dict[str, Any]) -> tuple[int, int] | None:
    width, height = item.get('width'), item.get('height')
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def _read_object(item: dict[str, Any], label: str | None) -> Box | None:
    segmentation = item.get('segmentation')
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if _is_polygon(polygon)]
    elif not isinstance(segmentation, dict):
        segmentation = None
    bbox = item.get('bbox')
    if isinstance(bbox, list) and len(bbox) == 4 and _are_numbers(bbox):
        x, y, width, height = map(float, bbox)
        corners = (x, y, x + width, y + height)
    elif isinstance(segmentation, list) and segmentation:
        xs, ys = ([v for p in segmentation for v in p[start::2]] for start in (0, 1))
        corners = (min(xs), min(ys), max(xs), max(ys))
    else:
        return None
    ignored = bool(item.get('iscrowd') or item.get('ignore'))
    return Box(label, corners, ignored, segmentation or None) if label else None


def _is_polygon(points: Any) -> bool:
    return _are_numbers(points) and len(points) >= 6 and len(points) % 2 == 0


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )

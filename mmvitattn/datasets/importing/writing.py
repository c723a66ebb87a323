"""Writes own data in the layouts that the configs read: COCO's, ADE20K's, class folders."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from .masks import load_mask
from .records import Box, OwnData, Sample

SPLITS = {'train': 'training', 'val': 'validation'}
QUALITY = 95  # of a JPEG that is written again


def write_data(
    data: OwnData, root: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes pictures and annotations below a new folder.

    Pictures are copied; only those with an EXIF rotation, and pictures for segmentation of mixed
    formats, which then become PNG files, are written again.

    Args:
        data: checked, and split into training and validation.
        root: the folder.
        progress: called with the number of pictures that are done and the total.
    """
    write = dict(detection=_detection, segmentation=_segmentation, classification=_classification)
    for done, _ in enumerate(write[data.task](data, root), start=1):
        if progress is not None:
            progress(done, len(data.samples))


def _detection(data: OwnData, root: Path) -> Iterator[None]:
    categories = [{'id': i, 'name': name} for i, name in enumerate(data.classes, start=1)]
    ids = {name: i for i, name in enumerate(data.classes, start=1)}
    (root / 'annotations').mkdir(parents=True)
    for split in SPLITS:
        (root / f'{split}2017').mkdir()
        images: list[dict] = []
        annotations: list[dict] = []
        for number, sample in enumerate(data.split(split), start=1):
            _write_picture(sample, root / f'{split}2017' / sample.name)
            width, height = sample.size
            images.append(
                {'id': number, 'file_name': sample.name, 'height': height, 'width': width}
            )
            for box in sample.boxes:
                key = {'id': len(annotations) + 1, 'image_id': number}
                annotations.append({**key, 'category_id': ids[box.label], **_coco_object(box)})
            yield
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content) + '\n', encoding='utf-8')


def _coco_object(box: Box) -> dict[str, Any]:
    x1, y1, x2, y2 = box.corners
    found: dict[str, Any] = {
        'bbox': [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
        'area': round((x2 - x1) * (y2 - y1), 3),
        'iscrowd': int(box.ignored),
    }
    if box.segmentation:
        found['segmentation'] = box.segmentation
    return found


def _segmentation(data: OwnData, root: Path) -> Iterator[None]:
    """Masks have 0 for ignored pixels and 1 for the first class, as those of ADE20K."""
    suffix = mask_picture_suffix(data)
    for split, folder in SPLITS.items():
        for kind in ('images', 'annotations'):
            (root / kind / folder).mkdir(parents=True)
        for sample in data.split(split):
            stem = Path(sample.name).stem
            _write_picture(sample, root / 'images' / folder / f'{stem}{suffix}')
            assert sample.mask is not None
            values = upright_mask(load_mask(sample.mask), sample)
            mask = np.zeros(values.shape, np.uint8)
            for value, index in data.mask_values.items():
                mask[values == value] = index + 1
            cv2.imwrite(str(root / 'annotations' / folder / f'{stem}.png'), mask)
            yield


def mask_picture_suffix(data: OwnData) -> str:
    """The suffix of all pictures for segmentation: mmseg reads one."""
    suffixes = {Path(sample.name).suffix for sample in data.samples}
    return suffixes.pop() if len(suffixes) == 1 else '.png'


def upright_mask(values: np.ndarray, sample: Sample) -> np.ndarray:
    """Turns a mask that was drawn on the stored picture, which EXIF data turn."""
    if values.shape == sample.size[::-1] or sample.orientation < 5:
        return values
    turned = values.T  # 5; the others turn it further
    if sample.orientation in (6, 7):
        turned = turned[:, ::-1]
    if sample.orientation in (7, 8):
        turned = turned[::-1]
    return turned


def _classification(data: OwnData, root: Path) -> Iterator[None]:
    for split in SPLITS:
        for name in data.classes:
            (root / split / name).mkdir(parents=True)
        for sample in data.split(split):
            assert sample.label is not None
            _write_picture(sample, root / split / sample.label / sample.name)
            yield


def _write_picture(sample: Sample, path: Path) -> None:
    same_format = path.suffix == sample.picture.suffix.lower()
    if sample.orientation == 1 and same_format:
        shutil.copyfile(sample.picture, path)
        return
    with Image.open(sample.picture) as image:
        upright = ImageOps.exif_transpose(image)
        options: dict[str, Any] = {'quality': QUALITY} if path.suffix in ('.jpg', '.jpeg') else {}
        upright.save(path, **options)

"""Compares the values of masks and labels with the number of classes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.layouts import IMAGE_SUFFIXES, MASKS_READ
from ..errors import UsageError

LABELS_READ = 10_000


def check_masks(dataset: Any, classes: Sequence[str] | None, split: str) -> None:
    """Reads some of mmseg's masks and compares their values with the number of classes.

    Args:
        dataset: built, without wrappers.
        classes: of the data set.
        split: for messages.

    Raises:
        UsageError: that names a mask with a value for which there is no class.
    """
    if not classes or not hasattr(dataset, 'seg_map_suffix') or not len(dataset):
        return
    for index in range(0, len(dataset), max(1, len(dataset) // MASKS_READ)):
        info = dataset.get_data_info(index)
        path = info.get('seg_map_path')
        if not path or '://' in path or Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if not os.path.isfile(path):
            raise UsageError(f'{split}_dataloader: {info["img_path"]} has no mask {path}')
        try:
            with Image.open(path) as image:
                mask = np.asarray(image)
        except OSError as error:
            raise UsageError(
                f'{split}_dataloader: the mask {path} cannot be read: {error}'
            ) from None
        if mask.ndim != 2:
            raise UsageError(
                f'{split}_dataloader: {path} has colours instead of class indices; convert the '
                'data: python tools/prepare_data.py import --format masks'
            )
        _check_mask_values(dataset, mask, path, split, len(classes))


def _check_mask_values(dataset: Any, mask: np.ndarray, path: str, split: str, classes: int) -> None:
    values = np.unique(mask).astype(np.int64)
    old_classes = len(dataset.label_map) if dataset.label_map else classes
    first = int(dataset.reduce_zero_label)  # value of the first class
    ignored = {dataset.ignore_index, 255} | ({0} if first else set())
    wrong = [int(v) for v in values if not first <= v < first + old_classes and v not in ignored]
    if wrong:
        zero = ' (reduce_zero_label=True: 0 is ignored)' if first else ''
        hint = '' if first or wrong != [classes] else ', or reduce_zero_label=True if 0 is no class'
        raise UsageError(
            f'{split}_dataloader: {path} has the value {wrong[0]}, but {old_classes} classes are '
            f'the values {first} to {first + old_classes - 1}{zero}, and {dataset.ignore_index} is '
            f'ignored. Add the class to metainfo.classes and num_classes, change the mask{hint}'
        )


def check_labels(dataset: Any, classes: Sequence[str] | None, split: str) -> None:
    """Compares mmpretrain's labels with the number of classes.

    Args:
        dataset: built, without wrappers.
        classes: of the data set.
        split: for messages.

    Raises:
        UsageError: that names a sample with a value for which there is no class.
    """
    if not classes or not hasattr(dataset, 'get_gt_labels') or not len(dataset):
        return
    for index in range(0, len(dataset), max(1, len(dataset) // LABELS_READ)):
        info = dataset.get_data_info(index)
        labels = np.atleast_1d(info.get('gt_label', 0))
        if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
            raise UsageError(
                f'{split}_dataloader: {info.get("img_path", index)} has the label '
                f'{int(labels.max())}, but {len(classes)} classes are 0 to {len(classes) - 1}'
            )

"""Checks of classes before a training: names, annotation files, heads and masks.

:func:`check_class_names` reads only the config; the others look at the built data sets and the
model. Each raises :class:`UsageError` with the wrong value and the remedy.
"""

import difflib
import json
import mmap
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ..errors import UsageError

MASKS_READ = 20  # for each data set
LABELS_READ = 10_000
NAMED = 6  # classes in a message
OTHER_CLASSES = ('rpn_head', 'semantic_head')  # heads that do not predict the data's classes


def check_class_names(cfg: Mapping, splits: Iterable[str]) -> None:
    """Checks that the classes of the config's data sets are lists of names.

    Args:
        cfg: the config.
        splits: the data loaders that will be used: 'train', 'val', 'test'.

    Raises:
        UsageError: for a string, as in ``classes=('apple')``, and for names that are used twice.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in _configs(loader['dataset']) if loader else ():
            for where, classes in _class_settings(dataset):
                _check_names(f'{split}_dataloader: {where}', classes)


def _configs(dataset: Mapping) -> Iterator[Mapping]:
    """A data set's config, and those of the data sets inside it."""
    yield dataset
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets') or []
    for part in inner:
        if isinstance(part, Mapping):
            yield from _configs(part)


def _class_settings(dataset: Mapping) -> Iterator[tuple[str, Any]]:
    meta = dataset.get('metainfo')
    if isinstance(meta, Mapping) and meta.get('classes') is not None:
        yield 'metainfo.classes', meta['classes']
    if dataset.get('classes') is not None:
        yield 'classes', dataset['classes']


def _check_names(where: str, classes: Any) -> None:
    if isinstance(classes, str):
        if not Path(classes).is_file():  # MMEngine reads names from a file
            raise UsageError(
                f'{where} is the string {classes!r}, and there is no such file with names; for one '
                f"class, write a tuple with a comma: ('{classes}',)"
            )
        return
    wrong = [name for name in classes if not isinstance(name, str)]
    if wrong:
        raise UsageError(f'{where} has {wrong[0]!r}, which is not a name; write strings')
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise UsageError(f'{where} has {twice[0]!r} twice; each class needs a name of its own')


def check_built(runner: Any, splits: Iterable[str] = ('train', 'val')) -> dict[str, list[Any]]:
    """Builds the data sets of a runner and compares them with each other and with the model.

    The runner keeps what is built, so nothing is read twice.

    Args:
        runner: MMEngine's.
        splits: 'train', 'val', 'test'.

    Returns:
        The data sets without wrappers, by split.

    Raises:
        UsageError: if an annotation file is broken, its classes are others than the config's, a
            data set is empty, or a head or a mask does not fit the number of classes.
    """
    found = {}
    for split in splits:
        if not runner.cfg.get(f'{split}_dataloader'):
            continue
        dataset = _build(runner, split).dataloader.dataset
        found[split] = list(leaves(dataset))
        for leaf in found[split]:
            _check_annotations(leaf, split)
        if not len(dataset):
            raise UsageError(_emptiness(runner.cfg[f'{split}_dataloader']['dataset'], split))
    names = {split: _classes(parts[0]) for split, parts in found.items()}
    first = next(iter(names), None)
    for split, classes in names.items():
        if first and classes and names[first] and classes != names[first]:
            raise UsageError(
                f'{first}_dataloader and {split}_dataloader have different classes: '
                f'{_list(names[first] or ())} and {_list(classes)}; write the same metainfo'
            )
        _check_heads(runner.model, classes, split)
    for split, parts in found.items():
        for leaf in parts:
            _check_masks(leaf, split)
            _check_labels(leaf, split)
    return found


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside of wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is None:
        yield dataset
        return
    for part in inner:
        yield from leaves(part)


def _build(runner: Any, split: str) -> Any:
    try:
        return getattr(runner, f'{split}_loop')
    except UsageError:
        raise
    except Exception as error:
        reason = _explain(runner.cfg[f'{split}_dataloader']['dataset'], split)
        if reason is None:  # the traceback says where
            traceback.print_exc()
            reason = f'{split}_dataloader could not be built: {type(error).__name__}: {error}'
        raise UsageError(reason) from None


def _explain(dataset: Mapping, split: str) -> str | None:
    """Why a data set in COCO's format cannot be built."""
    for part in _configs(dataset):
        file = os.path.join(part.get('data_root') or '', part.get('ann_file') or '')
        if not file.endswith('.json') or not Path(file).is_file():
            continue
        try:
            content = json.loads(Path(file).read_text(encoding='utf-8'))
        except ValueError as error:
            return f'{file} is not valid JSON: {error}; export or download it again'
        if not isinstance(content, dict):
            return f'{file} is not an annotation file in COCO format: it has no objects'
        absent = [k for k in ('images', 'annotations', 'categories') if k not in content]
        if absent:
            return f'{file} has no {" and no ".join(absent)}; COCO annotation files have them'
        classes = dict(_class_settings(part)).get('metainfo.classes')
        names = [category.get('name') for category in content['categories']]
        if classes and not isinstance(classes, str) and not set(classes) <= set(names):
            return _missing_classes(classes, names, file, split)
        if not content['images'] or not content['annotations']:
            return f'{file} lists no pictures or no objects ({split}_dataloader)'
    return _emptiness(dataset, split) if 'ann_file' in str(dataset) and _looks_empty() else None


def _looks_empty() -> bool:
    """Whether the error being handled is that of MMEngine for a data set without samples."""
    return 'need at least one array to concatenate' in traceback.format_exc()


def _emptiness(dataset: Mapping, split: str) -> str:
    part = list(_configs(dataset))[-1]
    return (
        f'{split}_dataloader: no sample is left of {part.get("ann_file") or part.get("data_root")} '
        f'after filtering with filter_cfg={part.get("filter_cfg")}; check metainfo.classes, '
        'filter_empty_gt (pictures without objects) and min_size (pixels of the pictures)'
    )


def _classes(dataset: Any) -> list[str] | None:
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    return None if classes is None else list(classes)


def _list(names: Sequence[str]) -> str:
    shown = ', '.join(map(repr, names[:NAMED]))
    return f'{shown} and {len(names) - NAMED} more' if len(names) > NAMED else shown


def _check_annotations(dataset: Any, split: str) -> None:
    """Compares class names with the annotation file, in COCO's format, or with class folders."""
    classes = _classes(dataset)
    folders = getattr(dataset, 'folder_to_idx', None)  # mmpretrain
    if classes and folders and set(classes) == set(folders) and classes != sorted(classes):
        raise UsageError(
            f'{split}_dataloader: metainfo.classes is {_list(classes)}, but the class folders are '
            f'numbered in the order of their names; write {_list(sorted(classes))}'
        )
    if not classes or not _numbers_by_file(dataset) or '://' in dataset.ann_file:
        return
    names = read_categories(dataset.ann_file)
    if not set(classes) <= set(names.values()):
        raise UsageError(_missing_classes(classes, list(names.values()), dataset.ann_file, split))
    in_file = [names[key] for key in dataset.cat_ids]  # the labels have this order
    if in_file != classes:
        raise UsageError(
            f'{split}_dataloader: metainfo.classes is {_list(classes)}, but mmdet numbers the '
            f'classes in the order of {dataset.ann_file}; write {_list(in_file)}'
        )


def _numbers_by_file(dataset: Any) -> bool:
    """Whether this is mmdet's CocoDataset, or a subclass that loads annotations as it does."""
    if not hasattr(dataset, 'cat_ids'):
        return False
    from mmdet.datasets import CocoDataset

    return getattr(type(dataset), 'load_data_list', None) is CocoDataset.load_data_list


def _missing_classes(
    classes: Sequence[str], names: Sequence[str], file: str | Path, split: str
) -> str:
    missing = [name for name in classes if name not in names]
    folded = {str(name).strip().casefold(): name for name in names}
    guess = folded.get(missing[0].strip().casefold())
    close = [guess] if guess else difflib.get_close_matches(missing[0], list(map(str, names)), n=1)
    hint = f'; did you mean {close[0]!r}? Upper and lower case matter' if close else ''
    return (
        f'{split}_dataloader: {file} has no class {_list(missing)}{hint}. It has '
        f'{_list(names)}: write these, in this order, as metainfo=dict(classes=...)'
    )


def read_categories(file: str | Path) -> dict[int, str]:
    """Names of the categories by id, from a COCO file of any size, without reading all of it.

    Raises:
        UsageError: if there are none.
    """
    with open(file, 'rb') as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', text):
            part = text[match.end() : match.end() + 2**24].decode(errors='ignore')
            try:
                categories, _ = json.JSONDecoder().raw_decode(part)
                return {category['id']: category['name'] for category in categories}
            except (ValueError, KeyError, TypeError):
                continue
    raise UsageError(f'{file} has no categories; COCO annotation files have them')


def _check_heads(model: nn.Module, classes: Sequence[str] | None, split: str) -> None:
    """Compares the outputs of each head with the number of classes."""
    for name, module in model.named_modules():
        outputs = getattr(module, 'num_classes', None)
        parts = name.split('.')
        if classes is None or not isinstance(outputs, int) or 'head' not in name:
            continue
        if any(part in OTHER_CLASSES for part in parts) or getattr(module, 'class_agnostic', False):
            continue
        if outputs != len(classes):
            setting = '.'.join(['model', *(p for p in parts if p != 'module'), 'num_classes'])
            raise UsageError(
                f'{setting} is {outputs}, but the classes of {split}_dataloader are '
                f'{len(classes)}: {_list(classes)}. Set num_classes={len(classes)}, or '
                'metainfo=dict(classes=...) of the data sets'
            )


def _check_masks(dataset: Any, split: str) -> None:
    """Reads some of mmseg's masks and compares their values with the number of classes."""
    classes = _classes(dataset)
    if not classes or not hasattr(dataset, 'seg_map_suffix') or not len(dataset):
        return
    for index in range(0, len(dataset), max(1, len(dataset) // MASKS_READ)):
        info = dataset.get_data_info(index)
        path = info.get('seg_map_path')
        if not path or '://' in path:
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


def _check_labels(dataset: Any, split: str) -> None:
    """Compares mmpretrain's labels with the number of classes."""
    classes = _classes(dataset)
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

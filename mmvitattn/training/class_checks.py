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

from torch import nn

from ..errors import UsageError
from .checks import inner_datasets
from .label_checks import check_labels, check_masks

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
    for part in inner_datasets(dataset):
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
    names = {split: classes_of(parts[0]) for split, parts in found.items()}
    first = next(iter(names), None)
    for split, classes in names.items():
        if first and classes and names[first] and classes != names[first]:
            raise UsageError(
                f'{first}_dataloader and {split}_dataloader have different classes: '
                f'{_list(names[first] or ())} and {_list(classes)}; write the same metainfo'
            )
        _check_heads(runner.model, found[split][0], split)
    for split, parts in found.items():
        for leaf in parts:
            check_masks(leaf, classes_of(leaf), split)
            check_labels(leaf, classes_of(leaf), split)
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


def classes_of(dataset: Any) -> list[str] | None:
    """The names of a built data set's classes."""
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    return None if classes is None else list(classes)


def _list(names: Sequence[str]) -> str:
    shown = ', '.join(map(repr, names[:NAMED]))
    return f'{shown} and {len(names) - NAMED} more' if len(names) > NAMED else shown


def _check_annotations(dataset: Any, split: str) -> None:
    """Compares class names with the annotation file, in COCO's format, or with class folders."""
    classes = classes_of(dataset)
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


def _check_heads(model: Any, dataset: Any, split: str) -> None:
    """Compares the outputs of each head with the number of classes."""
    classes = classes_of(dataset)
    open_vocabulary = getattr(dataset, 'return_classes', False)
    if classes is None or open_vocabulary or hasattr(dataset, 'depth_map_suffix'):
        return
    things = dataset.metainfo.get('thing_classes') or classes  # of panoptic data
    for name, outputs in _outputs(model):
        if outputs not in (len(classes), len(things)):
            setting = '.'.join(['model', *(part for part in name if part != 'module')])
            raise UsageError(
                f'{setting}.num_classes is {outputs}, but the classes of {split}_dataloader are '
                f'{len(classes)}: {_list(classes)}. Set num_classes={len(classes)}, or '
                'metainfo=dict(classes=...) of the data sets'
            )


def _outputs(model: Any) -> Iterator[tuple[list[str], int]]:
    """Name and ``num_classes`` of each head that predicts the classes of the data.

    Args:
        model: built, or, in a sharded training, not yet built: its config.
    """
    parts = model.named_modules() if isinstance(model, nn.Module) else _dicts(model)
    for name, part in parts:
        get = (
            part.get
            if isinstance(part, Mapping)
            else lambda key, part=part: getattr(part, key, None)
        )
        words, outputs = name.split('.'), get('num_classes')
        ours = 'head' in name and not any(word in OTHER_CLASSES for word in words)
        if ours and isinstance(outputs, int) and not get('class_agnostic'):
            yield words, outputs


def _dicts(config: Any, name: str = '') -> Iterator[tuple[str, Mapping]]:
    """The dicts in a config, with dotted names."""
    if isinstance(config, Mapping):
        yield name, config
    children = config.items() if isinstance(config, Mapping) else enumerate(config)
    for key, value in children:
        if isinstance(value, Mapping | list | tuple):
            yield from _dicts(value, f'{name}.{key}'.lstrip('.'))

"""Divides own data into training and validation."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...errors import UsageError
from .files import read_text
from .records import Flaws, OwnData, Sample


def split_data(
    data: OwnData, flaws: Flaws, share: float | None, lists: Sequence[Path] | None
) -> None:
    """Sets the split of each sample to 'train' or 'val'; others are removed.

    Args:
        data: with the splits of the source.
        flaws: is extended.
        share: of the training pictures, instead of the source's splits; 0.8 if there are none.
            A picture's side depends only on a hash of its name, and, for classification, on its
            class.
        lists: two files that name the pictures for training and for validation, one in a line, or
            in the first column of a CSV file.

    Raises:
        UsageError: if nothing is left of a split.
    """
    own = {sample.split for sample in data.samples}
    if lists:
        _split_by_lists(data, flaws, lists)
    elif share is None and 'train' in own and own & {'val', 'test'}:
        _use_own_splits(data, flaws, 'val' if 'val' in own else 'test')
    else:
        _split_by_hash(data, 0.8 if share is None else share)
    for name in ('train', 'val'):
        if not data.split(name):
            raise UsageError(
                f'no picture is left for {name} of {len(data.samples)} that can be used; '
                'change --split or --lists, or add pictures'
            )


def _use_own_splits(data: OwnData, flaws: Flaws, validation: str) -> None:
    kept = []
    for sample in data.samples:
        if sample.split == validation:
            sample.split = 'val'
        if sample.split in ('train', 'val'):
            kept.append(sample)
        elif sample.split == 'test':
            flaws.add('pictures of a test split', sample.picture)
        else:
            flaws.add('picture in neither list', sample.picture)
    data.samples = kept


def _split_by_hash(data: OwnData, share: float) -> None:
    groups: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        groups[sample.label].append(sample)
    for group in groups.values():
        group.sort(key=lambda s: (hashlib.sha256(s.picture.name.encode()).digest(), str(s.picture)))
        last = max(1, len(group) - 1)  # at least one of each where there are two
        num_train = min(max(round(share * len(group)), 1), last)
        for position, sample in enumerate(group):
            sample.split = 'train' if position < num_train else 'val'


def _split_by_lists(data: OwnData, flaws: Flaws, lists: Sequence[Path]) -> None:
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        sample.split = None
        by_name[sample.picture.name].append(sample)
        by_name[sample.picture.stem].append(sample)
    for file, split in zip(lists, ('train', 'val'), strict=True):
        for number, name in enumerate(_names(file)):
            samples = by_name.get(name) or by_name.get(Path(name).stem, [])
            if not samples and number:  # the first line may be the header of a table
                flaws.add('list names no picture', file, name)
            for sample in samples:
                if sample.split not in (None, split):
                    flaws.add('picture in both lists', sample.picture)
                sample.split = split
    for sample in data.samples:
        if sample.split is None:
            flaws.add('picture in neither list', sample.picture)
    data.samples = [sample for sample in data.samples if sample.split]


def _names(file: Path) -> list[str]:
    """File names in the first column, each once."""
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    first = (line.split(',')[0].strip().strip('"').replace('\\', '/') for line in lines)
    return list(dict.fromkeys(Path(name).name for name in first))

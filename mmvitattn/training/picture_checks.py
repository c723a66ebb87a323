"""Finds pictures that cannot be decoded: before a training, or while it runs."""

import multiprocessing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from tqdm import tqdm

from ..datasets.importing.files import probe
from ..errors import PictureError, UnreadableError, UsageError

SAMPLED = 1000  # pictures of a data set that are looked for without --check-pictures
NAMED = 10
THREADS = 8
LOADING_ERRORS = (OSError, AssertionError, ValueError, AttributeError, cv2.error)


def check_pictures(datasets: Mapping[str, Iterable[Any]], every: bool) -> None:
    """Looks for the pictures of data sets.

    Args:
        datasets: by split, without wrappers.
        every: decode all pictures and masks, with a progress bar, each process its share;
            otherwise only see whether the files of up to ``SAMPLED`` samples exist.

    Raises:
        UsageError: that names the pictures which are missing or cannot be decoded.
    """
    leaves = [dataset for parts in datasets.values() for dataset in parts]
    paths = list(dict.fromkeys(path for dataset in leaves for path in _paths(dataset, every)))
    paths = paths[get_rank() :: get_world_size()]
    check = _decode if every else _find
    with ThreadPoolExecutor(THREADS) as pool:
        results: Iterable[str | None] = pool.map(check, paths)
        if every:
            results = tqdm(results, total=len(paths), desc='decoding pictures', unit='picture')
        bad = [result for result in results if result]
    if bad:
        more = [f'  and {len(bad) - NAMED} more'] if len(bad) > NAMED else []
        lines = [
            f'{len(bad)} of {len(paths)} pictures that were looked at cannot be used:',
            *(f'  {line}' for line in bad[:NAMED]),
            *more,
            'replace them or remove them from the annotations; or train without --check-pictures '
            'and skip those that cannot be decoded: --skip-bad-pictures N',
        ]
        raise UsageError('\n'.join(lines))


def _paths(dataset: Any, every: bool) -> Iterator[str]:
    step = 1 if every else max(1, len(dataset) // SAMPLED)
    for index in range(0, len(dataset), step):
        info = dataset.get_data_info(index)
        for key in ('img_path', 'seg_map_path'):
            path = info.get(key)
            if isinstance(path, str) and '://' not in path:
                yield path


def _find(path: str) -> str | None:
    return None if Path(path).is_file() else f'{path} is missing'


def _decode(path: str) -> str | None:
    try:
        probe(Path(path))
    except UnreadableError as error:
        return str(error)
    return None


class SkippedPictures:
    """Counts the different pictures that all workers of a process skip.

    Args:
        limit: how many may be skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._keys = multiprocessing.Array('Q', max(limit, 1))  # hash of each, 0 for none

    @property
    def count(self) -> int:
        """How many were skipped."""
        return sum(self._keys[i] != 0 for i in range(self.limit))

    def add(self, path: str) -> bool:
        """Counts a picture once; whether it may be skipped."""
        key = 1 << 32 | zlib.crc32(path.encode())
        with self._keys.get_lock():
            for position in range(self.limit):
                if self._keys[position] == key:
                    return True
                if self._keys[position] == 0:
                    self._keys[position] = key
                    return True
        return False


class GuardedLoading:
    """A loading transform whose errors name the picture.

    Args:
        transform: loads a picture or its annotation.
        skipped: counts pictures that are skipped; MMEngine then takes another sample.
    """

    def __init__(self, transform: Callable, skipped: SkippedPictures) -> None:
        self.transform, self.skipped = transform, skipped

    def __call__(self, results: dict) -> Any:
        """Loads, or returns ``None`` if the picture is skipped.

        Raises:
            PictureError: if the picture cannot be loaded and must not be skipped.
        """
        try:
            return self.transform(results)
        except LOADING_ERRORS as error:
            paths = [results.get('img_path'), results.get('seg_map_path')]
            shown = ' or '.join(str(path) for path in paths if path)
            lines = str(error).replace(shown, '').strip(' :\n').splitlines()
            reason = lines[-1] if lines else type(error).__name__
            if self.skipped.add(shown):
                print_log(f'skipped: {shown} ({reason})', 'current', level=30)
                return None
            raise PictureError(
                f'{shown} cannot be loaded ({reason}). Replace it or remove it from the '
                f'annotations, or allow for skipping: --skip-bad-pictures {self.skipped.limit + 1}'
            ) from None

    def __repr__(self) -> str:
        """That of the transform."""
        return repr(self.transform)


def guard_loading(datasets: Mapping[str, Iterable[Any]], limit: int) -> SkippedPictures:
    """Makes errors of loading name the picture, and skips some in training.

    Args:
        datasets: by split, without wrappers; changed in place.
        limit: how many training pictures may be skipped. None is skipped in validation, since that
            would change the metric.

    Returns:
        Counts the pictures that are skipped.
    """
    skipped = SkippedPictures(limit)
    for split, parts in datasets.items():
        for dataset in parts:
            transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
            counter = skipped if split == 'train' else SkippedPictures(0)
            for position, transform in enumerate(transforms):
                if type(transform).__name__.startswith('Load'):
                    transforms[position] = GuardedLoading(transform, counter)
    return skipped

"""Finds pictures, and reads what their files say about themselves."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from ...errors import UnreadableError, UsageError
from ..layouts import IMAGE_SUFFIXES as SUFFIXES

FORMATS = {'JPEG', 'MPO', 'PNG', 'BMP', 'TIFF', 'WEBP'}  # what OpenCV reads as well
ORIENTATION = 0x0112  # EXIF tag
MAX_TEXT = 2**31  # bytes of an annotation file
SPLIT_WORDS = dict(train='train', training='train', test='test', testing='test')
SPLIT_WORDS |= dict(val='val', valid='val', validation='val')


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The text of an annotation file, with or without a byte order mark.

    Raises:
        UnreadableError: if it is not a text file of at most ``limit`` bytes.
    """
    try:
        if path.stat().st_size > limit:
            raise UnreadableError(f'{path} has more than {limit:,} bytes')
        return path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f'{path} cannot be read as text: {error}') from None


def visible_files(root: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files below ``root`` with one of the suffixes, sorted; hidden files and folders are left out.

    Args:
        root: a folder.
        suffixes: in lower case.
    """
    return sorted(
        path
        for path in root.rglob('*')
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith('.') for part in path.relative_to(root).parts)
    )


def split_of(path: Path) -> str | None:
    """'train', 'val' or 'test' if a part of a relative path says so, the last one first."""
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in reversed(re.findall('[a-z]+', part.lower())):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def source_folder(source: Path) -> Path:
    """The folder of the source, which may be a file in it.

    Raises:
        UsageError: if there is neither.
    """
    if not source.exists():
        raise UsageError(f'there is no file or folder {source}')
    return source if source.is_dir() else source.parent


class PictureIndex:
    """Finds pictures below a folder by the names that annotations give them.

    Args:
        root: the folder. Nothing outside of it is found.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pictures = visible_files(root, SUFFIXES)
        self._known = set(self.pictures)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.pictures:
            self._by_name[path.name.lower()].append(path)
            self._by_stem[path.stem.lower()].append(path)

    def folders_of(self, split: str | None) -> list[Path]:
        """The folders with pictures whose path names the split."""
        folders = sorted({path.parent for path in self.pictures})
        return [f for f in folders if split and split_of(f.relative_to(self.root)) == split]

    def find(self, name: str, *near: Path) -> Path | None:
        """The picture that an annotation names, possibly by a path on another machine.

        Args:
            name: file name or path.
            near: folders that are preferred.

        Returns:
            The file; ``None`` if there is none, or if several are equally likely.
        """
        tail = PurePosixPath(name.replace('\\', '/'))
        if not tail.name:
            return None
        for folder in near:
            if not tail.is_absolute() and folder / tail in self._known:
                return folder / tail
        return _most_likely(self._by_name[tail.name.lower()], tail.parts, near)

    def find_stem(self, stem: str, *near: Path) -> Path | None:
        """The picture of this name without its suffix; as :meth:`find`."""
        return _most_likely(self._by_stem[stem.lower()], (), near)


def _most_likely(paths: list[Path], tail: tuple[str, ...], near: Iterable[Path]) -> Path | None:
    """The path that shares most of its end with ``tail``, then of its start with a folder."""
    if len(paths) < 2:
        return paths[0] if paths else None
    folders = list(near)

    def score(path: Path) -> tuple[int, int]:
        start = max((_shared(path.parts, folder.parts) for folder in folders), default=0)
        return _shared(path.parts[::-1], tail[::-1]), start

    best = max(map(score, paths))
    likely = [path for path in paths if score(path) == best]
    return likely[0] if len(likely) == 1 else None


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def probe(path: Path) -> tuple[tuple[int, int], int]:
    """Decodes a picture.

    Args:
        path: the file.

    Returns:
        Width and height in pixels, as stored, and the EXIF orientation, 1 to 8.

    Raises:
        UnreadableError: if it is damaged or has a format that OpenCV does not read.
    """
    try:
        with Image.open(path) as image:
            if image.format not in FORMATS:
                raise UnreadableError(f'{path} is a {image.format} file')
            size, orientation = image.size, image.getexif().get(ORIENTATION, 1)
            # A JPEG is decoded at an eighth of its size: fast, and all of its data is read.
            image.draft('RGB', (max(1, size[0] // 8), max(1, size[1] // 8)))
            image.load()
    except UnreadableError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), 'it') or type(error).__name__
        raise UnreadableError(f'{path} cannot be decoded: {reason}') from None
    return size, orientation if orientation in range(1, 9) else 1

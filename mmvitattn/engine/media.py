"""Pictures and videos for inference: finding, naming, reading and writing them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .errors import UsageError

IMAGES = {'.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
VIDEOS = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}
DEFAULT_RATE = 25.0  # frames a second where a video does not tell


class UnreadableError(Exception):
    """A file that cannot be read, or not to its end; the message says why."""


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEOS


def check_out_dir(folder: Path) -> None:
    """Nothing that exists is written over.

    Args:
        folder: folder of the results.

    Raises:
        UsageError: if it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f'{folder} exists and is no empty folder; name another for the results')


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Pictures and videos: files as they are, of folders those that their names tell.

    Args:
        inputs: files and folders; folders are searched with all below them.

    Returns:
        The files, each once, in the given order, those of a folder sorted.

    Raises:
        UsageError: if an input is not there, or a folder holds no pictures and no videos.
    """
    found: dict[Path, None] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            inside = sorted(p for p in given.rglob('*') if p.suffix.lower() in IMAGES | VIDEOS)
            if not inside:
                raise UsageError(f'{given}: the folder holds no pictures and no videos')
            found.update(dict.fromkeys(map(_absolute, inside)))
        elif given.is_file():
            found[_absolute(given)] = None
        else:
            raise UsageError(f'there is no input {given}')
    return list(found)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # '..' is resolved, links are not


def name_outputs(
    files: Sequence[Path], endings: Sequence[str], taken: Sequence[str] = ()
) -> dict[Path, Path]:
    """A name for the results of each file that no other has.

    Folders below the files' common one are kept, so that equal names in different folders stay
    apart; files that differ in their endings alone get the ending, or a number, as well.

    Args:
        files: absolute paths, each once.
        endings: what is added to a name to make the names of the results.
        taken: names that no result may have.

    Returns:
        Relative paths without ending.
    """
    common = os.path.commonpath([file.parent for file in files])
    names: dict[Path, Path] = {}
    used = {name.casefold() for name in taken}
    for file in files:
        base = file.relative_to(common).with_suffix('')
        suffix, number = file.suffix.lstrip('.').lower(), 1
        name = base
        # Case is ignored, as some file systems do.
        while used & (results := {f'{name}{ending}'.casefold() for ending in endings}):
            tail = suffix if number == 1 else f'{suffix}_{number}'
            name, number = base.with_name(f'{base.name}_{tail}'), number + 1
        names[file] = name
        used |= results
    return names


def read_image(path: Path) -> np.ndarray:
    """Reads a picture whole; OpenCV alone would fill what a damaged file lacks with grey.

    Args:
        path: the file.

    Returns:
        BGR, (H, W, 3), uint8, turned as its EXIF data says.

    Raises:
        UnreadableError: if it cannot be read, or is cut off.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except Image.UnidentifiedImageError:
        pass  # a format that OpenCV may know
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(str(error)) from None
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableError('it is no picture that can be read')
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes a picture, and the folder that it lies in.

    Args:
        path: the file; its ending tells the format.
        image: BGR or single-channel, of 8 or 16 bits.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f'{path} cannot be written')


class VideoReader:
    """Frames of a video, one at a time.

    Args:
        path: the file.

    Raises:
        UnreadableError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UnreadableError('it is no video that can be read')
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE
        # What the file says; some formats estimate it.
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields BGR frames, (H, W, 3).

        Raises:
            UnreadableError: if there is none, or clearly fewer than the file says.
        """
        count = 0
        try:
            while True:
                read, frame = self._capture.read()
                if not read:
                    break
                count += 1
                yield frame
        finally:
            self._capture.release()
        if count == 0 or count < 0.9 * self.length:
            raise UnreadableError(f'only {count} of {self.length} frames can be read')


class VideoWriter:
    """Writes an MP4 file frame by frame; :meth:`close` it.

    Args:
        path: the file to write.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, BGR, (H, W, 3); all have one size.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._writer is None:
            size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter_fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, size)
            if not self._writer.isOpened():
                raise OSError(f'{self._path}: this OpenCV cannot write MP4 files')
        self._writer.write(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Completes the file."""
        if self._writer is not None:
            self._writer.release()

"""Images and videos for inference: finding, naming, reading and writing them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..errors import UnreadableError, UsageError

IMAGES = {'.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
VIDEOS = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}
DEFAULT_RATE = 25.0  # frames per second of a video that does not specify it


def is_video(path: Path) -> bool:
    """Whether a file has the extension of a video."""
    return path.suffix.lower() in VIDEOS


def check_out_dir(folder: Path) -> None:
    """Checks that no existing file can be overwritten.

    Args:
        folder: folder of the results.

    Raises:
        UsageError: if it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f'{folder} exists and is not an empty folder; choose another for the results'
        )


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Finds images and videos: all given files, and in folders the files with a known extension.

    Args:
        inputs: files and folders, which are searched recursively.

    Returns:
        Absolute paths, each once, in the given order; those of a folder are sorted.

    Raises:
        UsageError: if an input is missing, or a folder contains no images or videos.
    """
    found: dict[Path, None] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            inside = sorted(p for p in given.rglob('*') if p.suffix.lower() in IMAGES | VIDEOS)
            if not inside:
                raise UsageError(f'{given}: the folder contains no images or videos')
            found.update(dict.fromkeys(map(_absolute, inside)))
        elif given.is_file():
            found[_absolute(given)] = None
        else:
            raise UsageError(f'there is no input {given}')
    return list(found)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # '..' is resolved, links are not


def name_outputs(files: Sequence[Path], endings: Sequence[str]) -> dict[Path, Path]:
    """Chooses a unique name for the results of each file.

    Subfolders of the files' common folder are kept; files whose names differ only in the extension
    get the extension, or a number, as well.

    Args:
        files: absolute paths, each once.
        endings: appended to a name to make the names of the results.

    Returns:
        Relative paths without extension.
    """
    common = os.path.commonpath([file.parent for file in files])
    names: dict[Path, Path] = {}
    used: set[str] = set()
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
    """Reads an image. A truncated one is an error; OpenCV would fill the rest with grey.

    Returns:
        BGR, (H, W, 3), uint8, rotated as its EXIF data says.

    Raises:
        UnreadableError: if it cannot be read, or is truncated.
    """
    try:
        with Image.open(path) as file:
            file.load()
        del file  # the pixels of a large image, which are read again
    except Image.UnidentifiedImageError:
        # OpenCV might read it, but allocates what a damaged header states.
        raise UnreadableError(f'{path}: not an image that can be read') from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(f'{path}: {error}') from None
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableError(f'{path}: not an image that can be read')
    return image


class VideoReader:
    """Frames of a video, one at a time.

    Raises:
        UnreadableError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._capture = path, cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UnreadableError(f'{path}: not a video that can be read')
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE
        # According to the file; some formats estimate it.
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields BGR frames, (H, W, 3).

        Raises:
            UnreadableError: if there are none, or clearly fewer than ``length``.
        """
        count = 0
        while (frame := self._capture.read()[1]) is not None:
            count += 1
            yield frame
        if count == 0 or count < 0.9 * self.length:
            raise UnreadableError(f'{self._path}: only {count} of {self.length} frames can be read')


def write_video(path: Path, rate: float, frames: Iterable[np.ndarray]) -> None:
    """Writes an MP4 file frame by frame.

    Args:
        path: the file to write.
        rate: frames per second.
        frames: BGR, (H, W, 3), all of the same size.

    Raises:
        OSError: if the file cannot be written.
    """
    writer = cv2.VideoWriter()
    try:
        for frame in frames:
            size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter.fourcc(*'mp4v')
            if not writer.isOpened() and not writer.open(str(path), code, rate, size):
                raise OSError(f'{path}: this OpenCV cannot write MP4 files')
            writer.write(np.ascontiguousarray(frame))
    finally:
        writer.release()

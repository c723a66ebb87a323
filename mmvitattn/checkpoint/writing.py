"""Writes files completely or not at all."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError

TEMPORARY = '.tmp'


def check_destination(dst: str | Path, force: bool = False) -> Path:
    """Checks, before any work is done, that a file can be written.

    Args:
        dst: the file.
        force: whether an existing file may be replaced.

    Returns:
        The file.

    Raises:
        UsageError: if it exists and ``force`` is not set, is a folder, or its folder is missing.
    """
    dst = Path(dst)
    if dst.is_dir() or not dst.parent.is_dir():
        raise UsageError(f'{dst} cannot be written: it is a folder, or its folder is missing')
    if dst.exists() and not force:
        raise UsageError(f'{dst} exists; remove it, or overwrite it with --force')
    return dst


@contextmanager
def written_atomically(dst: Path) -> Iterator[Path]:
    """Yields a temporary file to write, which replaces ``dst`` if the block raises no error.

    The content is on the disk before the name is, so that neither a killed process nor a power
    failure leaves an incomplete file of this name.
    """
    handle, name = tempfile.mkstemp(prefix=f'.{dst.name}.', suffix=TEMPORARY, dir=dst.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        _sync(temporary)
        os.replace(temporary, dst)
        _sync(dst.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(content: bytes | memoryview, dst: Path) -> None:
    """Writes a file completely or not at all.

    Raises:
        UsageError: if it cannot be written, e.g. because the disk is full; it states the bytes that
            are needed and free.
    """
    try:
        with written_atomically(dst) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        free = shutil.disk_usage(dst.parent).free if dst.parent.is_dir() else 0
        raise UsageError(
            f'{dst} cannot be written: {error.strerror}. It needs {len(content):,} bytes, and '
            f'{free:,} are free there; no part of it was kept, and existing files are unchanged'
        ) from error


def save_atomically(checkpoint: dict, dst: Path) -> None:
    """``torch.save`` that never leaves an incomplete file.

    Args:
        checkpoint: what to write.
        dst: the file.

    Raises:
        UsageError: if it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(buffer.getbuffer(), dst)


def plain_data(value: Any) -> Any:
    """Numbers, text, lists and dicts, which any program can read; other objects become ``None``.

    Args:
        value: e.g. the ``meta`` of a checkpoint.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_data(item) for item in value]
    return value.item() if isinstance(value, np.generic) else None

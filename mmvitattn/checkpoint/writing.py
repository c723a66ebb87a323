"""Writes files completely or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError


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
    """Yields a temporary file to write, which replaces ``dst`` if the block raises no error."""
    handle, name = tempfile.mkstemp(prefix=f'.{dst.name}.', dir=dst.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, dst)
    except BaseException:
        temporary.unlink()
        raise


def save_atomically(checkpoint: dict, dst: Path) -> None:
    """``torch.save`` that never leaves an incomplete file.

    Args:
        checkpoint: what to write.
        dst: the file.
    """
    with written_atomically(dst) as temporary, temporary.open('wb') as file:
        torch.save(checkpoint, file)


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

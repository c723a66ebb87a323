"""Files that the tools write, each whole or not at all, and what the converters share."""

import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.errors import UsageError

Converted = tuple[dict[str, Tensor], dict[str, Any]]  # state dict and description


def add_file_arguments(parser: ArgumentParser, example: str) -> None:
    """Adds the arguments ``src``, ``dst`` and ``--force``.

    Args:
        parser: the tool's parser.
        example: name of a released file, for the help.
    """
    parser.add_argument('src', help=f'released checkpoint, e.g. {example}')
    parser.add_argument('dst', help='file to write, e.g. converted.pth')
    add_force_argument(parser)


def add_force_argument(parser: ArgumentParser, dst: str = 'DST') -> None:
    """Adds ``--force``.

    Args:
        parser: the tool's parser.
        dst: name of the argument with the file that is written, for the help.
    """
    parser.add_argument('--force', action='store_true', help=f'overwrite an existing {dst}')


def one_or_each(sizes: Sequence[int] | None) -> int | Sequence[int] | None:
    """Sizes of an option with ``nargs='+'``: a single one stands for all stages."""
    return sizes[0] if sizes is not None and len(sizes) == 1 else sizes


def convert_file(args: Namespace, model: str, convert: Callable[[], Converted]) -> dict[str, Any]:
    """Writes ``args.dst`` as {'state_dict', 'meta'}, all or nothing, and says what it holds.

    Args:
        args: with ``src``, ``dst`` and ``force``.
        model: name of the model family.
        convert: reads and converts ``args.src``.

    Returns:
        The description.

    Raises:
        UsageError: if a file or an option cannot be used; ``args.dst`` is as it was.
    """
    dst = check_destination(args.dst, args.force)
    try:
        state_dict, description = convert()
        meta = dict(description, source=Path(args.src).name)
        save_atomically(dict(state_dict=state_dict, meta=meta), dst)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(str(error)) from None
    print(f'{dst}: {len(state_dict)} parameters of {model} {description["arch"]}')
    print(f'dropped: {", ".join(description["dropped"]) or "nothing"}')
    return description


def check_destination(dst: str | Path, force: bool = False) -> Path:
    """Whether a file can be written, before any work is done.

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
    """Gives a file beside ``dst`` to write, which takes its place when the block ends well.

    Args:
        dst: the file; it is never half a file, and as it was if the block raises.
    """
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
    """``torch.save`` that never leaves half a file.

    Args:
        checkpoint: what to write.
        dst: the file.
    """
    with written_atomically(dst) as temporary, temporary.open('wb') as file:
        torch.save(checkpoint, file)


def plain_data(value: Any) -> Any:
    """What any program can read: numbers, text, lists and dicts; other objects become ``None``.

    Args:
        value: e.g. the ``meta`` of a checkpoint.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_data(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return None

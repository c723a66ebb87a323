"""From a released file to one that MMEngine loads: what the command-line tools share."""

import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    parser.add_argument('--force', action='store_true', help='overwrite an existing DST')


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
    dst = Path(args.dst)
    if dst.exists() and not args.force:
        raise UsageError(f'{dst} exists; remove it, or overwrite it with --force')
    if dst.is_dir() or not dst.parent.is_dir():
        raise UsageError(f'{dst} cannot be written: it is a folder, or its folder is missing')
    try:
        state_dict, description = convert()
        meta = dict(description, source=Path(args.src).name)
        save_atomically(dict(state_dict=state_dict, meta=meta), dst)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(str(error)) from None
    print(f'{dst}: {len(state_dict)} parameters of {model} {description["arch"]}')
    print(f'dropped: {", ".join(description["dropped"]) or "nothing"}')
    return description


def save_atomically(checkpoint: dict, dst: Path) -> None:
    """Writes beside ``dst`` and renames: ``dst`` is never half a file.

    Args:
        checkpoint: what to write.
        dst: the file.
    """
    handle, temporary = tempfile.mkstemp(prefix=f'.{dst.name}.', dir=dst.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            torch.save(checkpoint, file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, dst)
    except BaseException:
        os.unlink(temporary)
        raise

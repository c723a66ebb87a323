"""Checks that a checkpoint is undamaged, as far as its format can show, and that it has numbers."""

import hashlib
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat.engine import print_log
from ..errors import CheckpointError

# As in the names of torchvision and OpenMMLab: resnet50-0676ba61.pth; eight digits may be a date.
HASH_IN_NAME = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$')
ZIP_MAGIC = b'PK\x03\x04'
DAMAGED = 'the file is damaged or incomplete; copy or download it again'
WEIGHTS = ('state_dict', 'ema_state_dict')


def hash_in_name(name: str) -> str | None:
    """First hexadecimal digits of the SHA-256 that the name of a published file contains."""
    found = HASH_IN_NAME.search(name)
    return found and found.group(1)


def check_hash(path: Path, expected: str | None = None) -> None:
    """Compares a file with its SHA-256, if one is known.

    Args:
        path: the file.
        expected: the first or all digits; default: those in the file's name, if it contains some.

    Raises:
        CheckpointError: if they differ.
    """
    source, remedy = 'as published', ''
    if expected is None:
        source, remedy = 'as its name says', ', or rename it if these digits are something else'
    expected = expected or hash_in_name(path.name)
    if expected is None:
        return
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()[: len(expected)]
    if found != expected:
        raise CheckpointError(
            f'{path}: its SHA-256 begins with {found[:8]}, not with {expected[:8]} {source}: '
            f'{DAMAGED}{remedy}'
        )


def check_crcs(path: Path) -> None:
    """Verifies the checksums in a zip file, which ``torch.load`` does not.

    The formats of torch before 1.6 and of safetensors contain none: only a name with a SHA-256
    protects them.

    Raises:
        CheckpointError: if one is wrong.
        Exception: of any type, if the file is not a zip file although it begins like one.
    """
    with path.open('rb') as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return
        with zipfile.ZipFile(file) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError('its parts are larger than the file')  # torch compresses nothing
            name = archive.testzip()
    if name is not None:
        raise CheckpointError(f'{path}: the CRC of {name} is wrong: {DAMAGED}')


def check_content(checkpoint: Mapping, source: str | Path) -> None:
    """Checks that the weights have names, and are neither NaN nor infinite.

    A warning is logged if only the state of the optimizer has such values.

    Raises:
        CheckpointError: if a weight has such a value, or ``state_dict`` and ``meta`` are no dicts.
    """
    state, meta = checkpoint.get('state_dict', checkpoint), checkpoint.get('meta') or {}
    if not (isinstance(state, Mapping) and isinstance(meta, Mapping)) or not all(
        isinstance(name, str) for name in state
    ):
        raise CheckpointError(f'{source}: state_dict or meta is not a dict with names as keys')
    parts = {key: checkpoint[key] for key in WEIGHTS if key in checkpoint} or checkpoint
    wrong, remedy = _not_finite(parts), 'use an earlier checkpoint'
    if wrong:
        raise CheckpointError(
            f'{source}: {len(wrong)} of its weights contain NaN or infinite values, the first is '
            f'{wrong[0]}: the training diverged, or the file is damaged; {remedy}'
        )
    wrong = _not_finite(checkpoint.get('optimizer') or {})
    if wrong:
        print_log(
            f'{source}: {len(wrong)} tensors of the optimizer state contain NaN or infinite '
            f'values, the first is {wrong[0]}; a training resumed from it will diverge: {remedy}',
            'current',
            logging.WARNING,
        )


def _not_finite(tree: Any) -> list[str]:
    return [name.removeprefix('state_dict.') for name, t in _tensors(tree, '') if not _finite(t)]


def _tensors(node: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in dicts and lists, with its place."""
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, Mapping | list | tuple):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield from _tensors(value, f'{name}.{key}' if name else str(key))


def _finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # torch has no sums of float8
    # The sum is quicker, but that of large numbers may overflow.
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())

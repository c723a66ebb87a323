"""Loads checkpoints without executing anything that they contain, also in place of MMEngine."""

import json
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch

from ..errors import CheckpointError
from .integrity import check_content, check_hash, hash_in_name
from .objects import MMENGINE
from .published import SCHEME, published_file
from .torch_pickle import read_torch_pickle

CLOUD = ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')  # the prefixes that MMEngine registers


def load_checkpoint(
    path: str | Path, trust: bool = False, map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Reads a checkpoint of MMEngine, of a converter or in the safetensors format.

    Args:
        path: the file, in the safetensors format if it ends in ``.safetensors``, otherwise in that
            of ``torch.save``; or ``mmvitattn://NAME``, weights that the package contains.
        trust: also read a file with other objects than tensors, plain data and those of MMEngine;
            such a file can run any code. Its checksums are not verified.
        map_location: device of the tensors, as for :func:`torch.load`.

    Returns:
        The dict in the file; of a safetensors file ``state_dict`` and ``meta``.

    Raises:
        CheckpointError: if the file is missing, damaged, contains an object that is not allowed,
            or weights that are NaN or infinite.
    """
    is_published = str(path).startswith(SCHEME)
    path = published_file(str(path)) if is_published else Path(path)  # the former is compared
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint {path}')
    if not (trust or is_published):
        check_hash(path)
    if path.suffix == '.safetensors':
        checkpoint = _read_safetensors(path, map_location)
    else:
        checkpoint = read_torch_pickle(path, None if trust else MMENGINE, map_location)
    check_content(checkpoint, path)
    return checkpoint


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open  # only for files of this format

    device = str(map_location) if isinstance(map_location, str | torch.device) else 'cpu'
    try:
        with safe_open(path, framework='pt', device=device) as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = {name: _from_json(text) for name, text in (file.metadata() or {}).items()}
            return dict(state_dict=state_dict, meta=meta)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path}: not a safetensors file, or truncated: {error}') from error


def _from_json(text: str) -> Any:
    """Metadata of the safetensors format are text; dicts and lists are written as JSON."""
    try:
        return json.loads(text) if text.startswith(('{', '[')) else text
    except ValueError:
        return text


def register_published() -> None:
    """Lets MMEngine load ``mmvitattn://NAME``, in any config."""
    from mmengine.runner import CheckpointLoader

    def load_published(filename: str, map_location: Any = None) -> dict[str, Any]:
        return load_checkpoint(filename, map_location=map_location)

    CheckpointLoader.register_scheme(SCHEME, load_published, force=True)


def use_safe_loading(
    trust: bool = False, loaded: MutableMapping[str, dict[str, Any]] | None = None
) -> None:
    """Makes MMEngine, in this process, read every checkpoint with :func:`load_checkpoint`.

    This covers ``load_from``, ``resume``, ``init_cfg=dict(type='Pretrained')`` and the inferencers
    of the toolboxes; URLs are downloaded first.

    Args:
        trust: read files whatever they contain.
        loaded: checkpoints that have been read already, on the CPU, by path. MMEngine gets each
            once, and it is removed from the dict.
    """
    from mmengine.runner import CheckpointLoader
    from mmengine.runner import checkpoint as mmengine_checkpoint

    loaded = {} if loaded is None else loaded

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        movable = map_location is None or isinstance(map_location, str | torch.device)
        if movable and filename in loaded:
            checkpoint = loaded.pop(filename)
            _move_tensors(checkpoint, map_location or 'cpu')
            return checkpoint
        return load_checkpoint(os.path.expanduser(filename), trust, map_location)

    def load_from_http(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
        return load_checkpoint(_download(filename), trust, map_location)

    def load_from_cloud(filename: str, map_location: Any = None) -> dict[str, Any]:
        raise CheckpointError(
            f'{filename}: only files and http addresses are read safely; download it and pass the '
            'file, or use --trust-checkpoint'
        )

    register = CheckpointLoader.register_scheme
    for prefix in ('', SCHEME):
        register(prefix, load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    if not trust:
        register(CLOUD, load_from_cloud, force=True)
    # The loaders of torchvision:// and openmmlab:// look up a URL and call this function.
    mmengine_checkpoint.load_from_http = load_from_http


def _move_tensors(node: dict | list, device: str | torch.device) -> None:
    """Moves the tensors in dicts and lists, which are modified to keep their attributes."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(value, torch.Tensor):
            node[key] = value.to(device)
        elif isinstance(value, dict | list):
            _move_tensors(value, device)


def _download(url: str) -> Path:
    """Downloads a URL to torch's cache; in a distributed run one process does so first."""
    dist = torch.distributed
    parallel = dist.is_available() and dist.is_initialized()
    is_first = not parallel or dist.get_rank() == 0
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
    for first in (True, False):
        if is_first == first and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(path), hash_in_name(path.name))
            except (URLError, OSError, RuntimeError) as error:  # RuntimeError: another SHA-256
                raise CheckpointError(f'{url} cannot be downloaded: {error}') from None
        if first and parallel:
            dist.barrier()
    return path

"""Checkpoints read without running anything that they contain.

A pickle can name any function and have it called while it is read. Here a file may hold tensors,
plain data and the few types that MMEngine writes beside the weights.
"""

import json
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine import dist
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from ..converters.rules import CheckpointError
from ..converters.torch_pickle import RefusedCheckpointError, read_torch_pickle
from .checkpoint_objects import MMENGINE
from .errors import UsageError

CLOUD = ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')  # as MMEngine registers them


def load_checkpoint(
    path: str | Path, trust: bool = False, map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Reads a checkpoint: MMEngine's, the converters' or one in the safetensors format.

    Args:
        path: the file; ``.safetensors`` tells that format, anything else is ``torch.save``'s.
        trust: read whatever the file contains, which can run any code.
        map_location: where the tensors go, as for :func:`torch.load`.

    Returns:
        The dict that it holds; of a safetensors file ``state_dict`` and ``meta``.

    Raises:
        UsageError: if the file is missing, damaged, or contains an object that is not read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'there is no checkpoint {path}')
    try:
        if path.suffix == '.safetensors':
            return _read_safetensors(path, map_location)
        if trust:
            return _read_anything(path, map_location)
        return read_torch_pickle(path, MMENGINE, map_location)
    except RefusedCheckpointError as error:
        raise UsageError(
            f'{error}. If you trust whoever made the file, --trust-checkpoint reads it as it is; '
            'it can then run any code'
        ) from None
    except CheckpointError as error:
        raise UsageError(str(error)) from None


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CheckpointError(f'{path}: pip install safetensors') from None
    device = str(map_location) if isinstance(map_location, str | torch.device) else 'cpu'
    try:
        with safe_open(path, framework='pt', device=device) as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = {name: _from_json(text) for name, text in (file.metadata() or {}).items()}
            return dict(state_dict=state_dict, meta=meta)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path}: no safetensors file, or truncated: {error}') from error


def _from_json(text: str) -> Any:
    """Metadata of the safetensors format is text; dicts and lists stand in it as JSON."""
    try:
        return json.loads(text) if text.startswith(('{', '[')) else text
    except ValueError:
        return text


def _read_anything(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:  # a damaged pickle can raise anything
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f'{path}: cannot be read: {message}') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path}: it holds a {type(checkpoint).__name__}, not a dict')
    return checkpoint


def use_safe_loading(trust: bool = False) -> None:
    """Makes MMEngine, in this process, read every checkpoint with :func:`load_checkpoint`.

    That is what ``load_from``, ``resume``, ``init_cfg=dict(type='Pretrained')`` and the toolboxes'
    inferencers load: files, and URLs, which are downloaded first.

    Args:
        trust: read whatever the files contain.
    """

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        return load_checkpoint(os.path.expanduser(filename), trust, map_location)

    def load_from_http(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
        return load_checkpoint(_download(filename), trust, map_location)

    def load_from_cloud(filename: str, map_location: Any = None) -> dict[str, Any]:
        raise UsageError(
            f'{filename}: only files and http addresses are read safely; download it and name the '
            'file, or give --trust-checkpoint'
        )

    register = CheckpointLoader.register_scheme
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    if not trust:
        register(CLOUD, load_from_cloud, force=True)
    # The loaders of torchvision:// and openmmlab:// look for a URL and pass it on to this.
    mmengine_checkpoint.load_from_http = load_from_http


def _download(url: str) -> Path:
    """File of a URL in torch's cache; one process of a distributed run fetches it first."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
    for first in (True, False):
        if dist.is_main_process() == first and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(path))
            except (URLError, OSError) as error:
                raise UsageError(f'{url} cannot be downloaded: {error}') from None
        if first:
            dist.barrier()
    return path

"""Reader of PyTorch's checkpoints that runs nothing a file contains.

Released checkpoints often pickle the training script's ``argparse.Namespace`` beside the weights,
which ``torch.load(weights_only=True)`` refuses, and torch 2.1 cannot be told to allow. Here the
names that a pickle may look up are listed; anything else is refused, the same in all versions.
"""

import pickle
import tarfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch

from .rules import CheckpointError

# Storages are looked up by torch itself.
ALLOWED = {
    ('argparse', 'Namespace'): Namespace,
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
}


class RefusedObjectError(pickle.UnpicklingError):
    """A pickle names something that is not read."""


class RestrictedUnpickler(pickle._Unpickler):
    """Looks up the listed names alone, and sets attributes of instances alone.

    The latter, a change to Python's unpickler in Python, keeps a file from altering the listed
    classes and functions themselves.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The listed object of this name."""
        if (module, name) not in ALLOWED:
            raise RefusedObjectError(
                f'it contains the object {module}.{name}, which is refused: only tensors, plain '
                f'data and argparse.Namespace are read'
            )
        return ALLOWED[module, name]

    def load_build(self) -> None:
        """The opcode that restores an object's attributes."""
        if not isinstance(self.stack[-2], Namespace | OrderedDict):
            raise RefusedObjectError(f'it sets attributes of {self.stack[-2]!r}, which is refused')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _load(file: BinaryIO, **options: Any) -> Any:
    return RestrictedUnpickler(file, **options).load()


def read_torch_pickle(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint that ``torch.save`` wrote: tensors, plain data, ``argparse.Namespace``.

    Args:
        path: the file.

    Returns:
        The dict that it holds, tensors on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated or of another kind, or contains another
            object.
    """
    try:
        # torch.load would unpack the one and run the other.
        if tarfile.is_tarfile(path) or _is_torchscript(path):
            raise ValueError('it is a tar file or a TorchScript program')
        pickle_module = SimpleNamespace(
            __name__=__name__, Unpickler=RestrictedUnpickler, load=_load
        )
        tree = torch.load(path, map_location='cpu', pickle_module=pickle_module, weights_only=False)
        if not isinstance(tree, dict):
            raise ValueError(f'it holds a {type(tree).__name__}, not a dict')
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error
    except RefusedObjectError as error:
        raise CheckpointError(f'{path}: {error}') from error
    except Exception as error:  # a damaged pickle can raise anything
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f'{path}: not a PyTorch checkpoint, or truncated: {message}'
        ) from error
    return tree


def _is_torchscript(path: str | Path) -> bool:
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # sees the file as torch.load will
    except RuntimeError:  # no zip file
        return False
    return 'constants.pkl' in reader.get_all_records()

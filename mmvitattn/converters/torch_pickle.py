"""Reader of PyTorch's checkpoints that runs nothing a file contains.

Checkpoints often pickle objects beside the weights, which ``torch.load(weights_only=True)``
refuses, and torch 2.1 cannot be told to allow. Here the names that a pickle may look up are listed;
anything else is refused, the same in all versions of torch.
"""

import pickle
import tarfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import torch

from .rules import CheckpointError


class RefusedCheckpointError(CheckpointError):
    """A checkpoint contains an object that is not read."""


class RefusedObjectError(pickle.UnpicklingError):
    """A pickle names something that is not read."""


def set_attributes(instance: Any, state: Any) -> None:
    """Gives an instance the attributes that a pickle holds for it.

    Args:
        instance: of a class whose attributes mean nothing to Python.
        state: attributes by name.

    Raises:
        RefusedObjectError: if they are of another form, or named as Python names its own.
    """
    plain = type(state) is dict and all(
        type(name) is str and not name.startswith('__') for name in state
    )
    if not plain:
        raise RefusedObjectError(
            f'it sets attributes of {instance!r} in an unusual way, which is refused'
        )
    vars(instance).update(state)


class ReadableObjects(NamedTuple):
    """What a pickle may contain beside tensors, numbers, strings, lists, tuples and dicts.

    Attributes:
        names: object that is put in place of each (module, name) of the pickle. It may be called
            with any arguments.
        setters: for each class whose instances have attributes in the pickle, the function that
            sets them; it is called with the instance and what the pickle holds.
        description: the kinds of objects, for the error message.
    """

    names: Mapping[tuple[str, str], Any]
    setters: Mapping[type, Callable[[Any, Any], None]]
    description: str


# Storages are looked up by torch itself.
TENSORS = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
}
RELEASES = ReadableObjects(
    names={**TENSORS, ('argparse', 'Namespace'): Namespace},
    setters={Namespace: set_attributes, OrderedDict: set_attributes},
    description='tensors, plain data and argparse.Namespace',
)


class RestrictedUnpickler(pickle._Unpickler):
    """Looks up the listed names alone, and sets attributes of listed instances alone.

    The latter, a change to Python's unpickler in Python, keeps a file from altering the listed
    classes and functions themselves. Subclasses name the objects.
    """

    readable: ReadableObjects
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The listed object of this name."""
        if (module, name) not in self.readable.names:
            raise RefusedObjectError(
                f'it contains the object {module}.{name}, which is refused: only '
                f'{self.readable.description} are read'
            )
        return self.readable.names[module, name]

    def load_build(self) -> None:
        """The opcode that restores an object's attributes."""
        state = self.stack.pop()
        instance = self.stack[-1]
        for cls in type(instance).__mro__:
            if cls in self.readable.setters:
                return self.readable.setters[cls](instance, state)
        raise RefusedObjectError(f'it sets attributes of {instance!r}, which is refused')

    dispatch[pickle.BUILD[0]] = load_build


def _pickle_module(readable: ReadableObjects) -> SimpleNamespace:
    """What ``torch.load`` needs of a module, for these objects."""
    unpickler = type('Unpickler', (RestrictedUnpickler,), dict(readable=readable))

    def load(file: BinaryIO, **options: Any) -> Any:
        return unpickler(file, **options).load()

    return SimpleNamespace(__name__=__name__, Unpickler=unpickler, load=load)


def read_torch_pickle(
    path: str | Path, readable: ReadableObjects = RELEASES, map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Reads a checkpoint that ``torch.save`` wrote, and runs nothing that it contains.

    Args:
        path: the file.
        readable: the objects that it may contain; as default tensors, plain data and
            ``argparse.Namespace``.
        map_location: where the tensors go, as for :func:`torch.load`.

    Returns:
        The dict that it holds.

    Raises:
        RefusedCheckpointError: if it contains another object.
        CheckpointError: if it is missing, truncated or of another kind.
    """
    try:
        # torch.load would unpack the one and run the other.
        if tarfile.is_tarfile(path) or _is_torchscript(path):
            raise ValueError('it is a tar file or a TorchScript program')
        tree = torch.load(
            path,
            map_location=map_location,
            pickle_module=_pickle_module(readable),
            weights_only=False,
        )
        if not isinstance(tree, dict):
            raise ValueError(f'it holds a {type(tree).__name__}, not a dict')
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error
    except RefusedObjectError as error:
        raise RefusedCheckpointError(f'{path}: {error}') from error
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

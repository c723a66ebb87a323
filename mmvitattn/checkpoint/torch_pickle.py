"""Reader of PyTorch checkpoints that executes nothing a file contains.

A pickle can name any function and have it called while it is read. In addition to the weights,
checkpoints often contain objects that ``torch.load(weights_only=True)`` refuses, and torch 2.1 has
no way to allow them. This reader looks up listed names only, with the same result in all versions
of torch.
"""

import math
import pickle
import tarfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import torch

from ..errors import CheckpointError
from .integrity import check_crcs

MAX_EXPANDED = 2**24  # elements of a tensor beyond those of its storage


class RefusedObjectError(pickle.UnpicklingError):
    """A pickle contains an object that is not allowed; the reader adds the file's name."""


class AllowedObjects(NamedTuple):
    """What a pickle may contain besides tensors, numbers, strings, lists, tuples and dicts.

    Attributes:
        names: the object to use for each (module, name) in the pickle. The pickle can call it with
            any arguments.
        setters: for each class whose instances have attributes in the pickle, the function that
            sets them, called with the instance and the pickled state.
        description: the kinds of objects, for the error message.
        remedy: what the user can do about another object, for the error message.
    """

    names: Mapping[tuple[str, str], Any]
    setters: Mapping[type, Callable[[Any, Any], None]]
    description: str
    remedy: str = ''


def set_attributes(instance: Any, state: Any) -> None:
    """Sets the pickled attributes of an instance.

    Args:
        instance: of a class whose attributes have no special meaning to Python.
        state: attributes by name.

    Raises:
        RefusedObjectError: if the state is not such a dict, or contains special names.
    """
    plain = type(state) is dict and all(
        type(name) is str and not name.startswith('__') for name in state
    )
    if not plain:
        raise RefusedObjectError(
            f'it sets attributes of {instance!r} in an unusual way, which is refused'
        )
    vars(instance).update(state)


def _rebuild_tensor(storage: Any, offset: int, size: Any, *others: Any) -> torch.Tensor:
    """A tensor; one with strides of 0 could be larger than any memory."""
    if math.prod(size) > storage._size() + MAX_EXPANDED:
        raise RefusedObjectError(f'it contains a tensor {tuple(size)} that its file cannot hold')
    return torch._utils._rebuild_tensor_v2(storage, offset, size, *others)


TENSORS: dict[tuple[str, str], Any] = {  # torch itself looks up the storages
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
}
RELEASES = AllowedObjects(
    names={**TENSORS, ('argparse', 'Namespace'): Namespace},
    setters={Namespace: set_attributes, OrderedDict: set_attributes},
    description='tensors, plain data and argparse.Namespace',
)


PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class RestrictedUnpickler(PythonUnpickler):
    """Looks up listed names only, and sets attributes of instances of listed classes only.

    The second restriction, which only Python's own unpickler in Python can express, keeps a file
    from changing the listed classes and functions themselves. Subclasses set ``allowed``.
    """

    allowed: AllowedObjects
    dispatch = dict(PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Returns the listed object of this name."""
        if (module, name) not in self.allowed.names:
            raise RefusedObjectError(
                f'it contains the object {module}.{name}, which is refused: only '
                f'{self.allowed.description} are read'
            )
        return self.allowed.names[module, name]

    def load_build(self) -> None:
        """Executes the opcode that restores an object's attributes."""
        state = self.stack.pop()
        instance = self.stack[-1]
        for cls in type(instance).__mro__:
            if cls in self.allowed.setters:
                return self.allowed.setters[cls](instance, state)
        raise RefusedObjectError(f'it sets attributes of {instance!r}, which is refused')

    dispatch[pickle.BUILD[0]] = load_build


def _pickle_module(allowed: AllowedObjects) -> Any:
    """The part of the pickle module's interface that ``torch.load`` uses."""
    unpickler = type('Unpickler', (RestrictedUnpickler,), dict(allowed=allowed))

    def load(file: BinaryIO, **options: Any) -> Any:
        return unpickler(file, **options).load()

    return SimpleNamespace(__name__=__name__, Unpickler=unpickler, load=load)


def read_torch_pickle(
    path: str | Path, allowed: AllowedObjects | None = RELEASES, map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Reads a checkpoint that ``torch.save`` wrote.

    Args:
        path: the file.
        allowed: the objects that it may contain: by default tensors, plain data and
            ``argparse.Namespace``. ``None`` allows everything, and so runs any code in the file,
            and verifies no checksums.
        map_location: device of the tensors, as for :func:`torch.load`.

    Returns:
        The dict in the file.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind or contains another
            object.
    """
    try:
        # torch.load would unpack a tar file and run a TorchScript program.
        if allowed is not None and (tarfile.is_tarfile(path) or _is_torchscript(path)):
            raise ValueError('it is a tar file or a TorchScript program')
        if allowed is not None:
            check_crcs(Path(path))
        module = pickle if allowed is None else _pickle_module(allowed)
        tree = torch.load(path, map_location=map_location, pickle_module=module, weights_only=False)
        if not isinstance(tree, dict):
            raise ValueError(f'it contains a {type(tree).__name__}, not a dict')
        return tree
    except CheckpointError:
        raise
    except RefusedObjectError as error:
        remedy = allowed.remedy if allowed else ''
        raise CheckpointError(f'{path}: {error}{remedy}') from error
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f'{path}: not a PyTorch checkpoint, or truncated: {reason}'
        ) from error


def _is_torchscript(path: str | Path) -> bool:
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # parses the file as torch.load does
    except RuntimeError:  # not a zip file
        return False
    return 'constants.pkl' in reader.get_all_records()

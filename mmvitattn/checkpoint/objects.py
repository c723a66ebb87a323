"""The objects other than weights that MMEngine writes into checkpoints, and how each is read.

Where a class or function of NumPy or Python can do more than a checkpoint needs, a function of this
module, which checks its arguments, takes its place.
"""

import math
import re
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np
import torch

from ..compat.engine import ConfigDict, HistoryBuffer
from .torch_pickle import RELEASES, TENSORS, AllowedObjects, RefusedObjectError, set_attributes

NUMBERS_AND_STRINGS = re.compile(r'[biufcUS]\d+')
STATISTICS = ('min', 'max', 'current', 'mean')
ARRAY_CLASS = object()  # replaces numpy.ndarray in a pickle: it cannot be called
TENSOR_CLASS = object()  # the same for torch.Tensor


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """``bytes`` as pickle protocol 2 writes them."""
    if type(text) is not str or encoding != 'latin1':
        raise RefusedObjectError(f'it encodes text as {encoding!r}, which is refused')
    return text.encode('latin1')


def _get_attribute(owner: Any, name: str) -> Any:
    """``getattr``, by which pickle protocol 2 names a method."""
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise RefusedObjectError(
            f'it contains the object builtins.getattr for {name!r} of {owner!r}, which is refused'
        )
    return getattr(HistoryBuffer, name)


def _new_array(cls: Any, shape: Any, kind: Any) -> np.ndarray:
    """An empty array, whose state follows in the pickle."""
    if cls is not ARRAY_CLASS:
        raise RefusedObjectError(f'it contains an array of class {cls!r}, which is refused')
    return np.empty(0, np.int8)


def _fill_array(array: Any, state: Any) -> None:
    """Sets shape, type and content; arrays of objects are refused: they consist of addresses."""
    version, shape, dtype, fortran_order, content = state
    if (
        not isinstance(dtype, np.dtype)
        or dtype.hasobject
        or type(content) is not bytes
        or any(type(side) is not int or side < 0 for side in shape)
        or math.prod(shape) * dtype.itemsize != len(content)
    ):
        raise RefusedObjectError('it contains a NumPy array that is not numbers or text')
    array.__setstate__((1, tuple(shape), dtype, bool(fortran_order), content))


def _new_dtype(name: str, align: Any = False, copy: Any = True) -> np.dtype:
    """A type of numbers or text."""
    if type(name) is not str or not NUMBERS_AND_STRINGS.fullmatch(name):
        raise RefusedObjectError(f'it contains the NumPy type {name!r}, which is refused')
    return np.dtype(name, copy=True)


def _set_byte_order(dtype: Any, state: Any) -> None:
    """Sets the byte order; the rest of the state must be what the type has already."""
    if state[1] not in ('<', '>', '|', '=') or state[2:] != dtype.__reduce__()[2][2:]:
        raise RefusedObjectError(f'it alters the NumPy type {dtype}, which is refused')
    dtype.__setstate__(state)


def _new_scalar(dtype: np.dtype, content: bytes) -> Any:
    """A NumPy number or text."""
    array = np.empty(0, np.int8)
    _fill_array(array, (1, (), dtype, False, content))
    return array[()]


def _rebuild_tensor(function: Any, cls: Any, args: tuple, state: Any) -> torch.Tensor:
    """A tensor with attributes, as fully sharded training on CPUs writes; they are dropped."""
    if function not in TENSORS.values() or cls is not TENSOR_CLASS:
        raise RefusedObjectError(f'it contains a tensor of class {cls!r}, which is refused')
    return function(*args)


PLAIN: dict[tuple[str, str], Any] = {
    (module, kind.__name__): kind
    for module in ('builtins', '__builtin__')  # protocol 2 writes the names of Python 2
    for kind in (set, frozenset, complex, slice, bytes, list, dict, int, float)
}
PLAIN['__builtin__', 'long'] = int
NUMPY = {
    ('numpy', 'ndarray'): ARRAY_CLASS,
    ('numpy', 'dtype'): _new_dtype,
    **{
        (f'numpy.{core}.multiarray', name): function
        for core in ('core', '_core')  # before and since NumPy 2
        for name, function in dict(_reconstruct=_new_array, scalar=_new_scalar).items()
    },
}
DTYPES = {
    ('torch', name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
MMENGINE = AllowedObjects(
    names={
        **TENSORS,
        **DTYPES,
        **PLAIN,
        **NUMPY,
        ('torch', 'device'): torch.device,
        ('torch', 'Tensor'): TENSOR_CLASS,
        ('torch._tensor', '_rebuild_from_type_v2'): _rebuild_tensor,
        ('_codecs', 'encode'): _encode,
        ('builtins', 'getattr'): _get_attribute,
        ('__builtin__', 'getattr'): _get_attribute,
        ('collections', 'Counter'): Counter,  # the milestones of MultiStepLR
        ('collections', 'defaultdict'): defaultdict,
        ('collections', 'deque'): deque,
        ('mmengine.config.config', 'ConfigDict'): ConfigDict,
        ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer,
    },
    setters={
        **RELEASES.setters,
        HistoryBuffer: set_attributes,
        np.ndarray: _fill_array,
        np.dtype: _set_byte_order,
    },
    description="tensors, plain data and MMEngine's own types",
    remedy='. If you trust the author of the file, read it with --trust-checkpoint; it can then '
    'run any code',
)

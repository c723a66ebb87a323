"""Reader of Flax's msgpack checkpoints; needs msgpack, but neither Flax nor JAX.

The format is msgpack with three extension types (``flax.serialization``): an array, a complex
number, a NumPy scalar. Arrays above the format's size limit are stored as a dict of chunks. The
files contain only data: nothing is unpickled or called.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # msgpack extension codes
CHUNKED = '__msgpack_chunked_array__'
MISSING_MSGPACK = (
    'reading Flax checkpoints needs msgpack: pip install "mmvitattn[convert]" (or pip install '
    'msgpack)'
)


def read_flax_msgpack(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint that Flax wrote.

    Args:
        path: the file.

    Returns:
        Nested dicts with NumPy arrays as leaves; bfloat16 arrays are converted to float32.

    Raises:
        CheckpointError: if the file is missing, truncated or of another format.
        ImportError: if msgpack is not installed.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError(MISSING_MSGPACK) from error
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from error
    try:
        tree = msgpack.unpackb(data, ext_hook=_decode, raw=False)
        if not isinstance(tree, dict):
            raise ValueError(f'it holds a {type(tree).__name__}, not a dict')
        return _join_chunks(tree)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise CheckpointError(
            f'{path}: not a Flax msgpack checkpoint, or truncated: {error}'
        ) from error


def _decode(code: int, data: bytes) -> Any:
    import msgpack

    content = msgpack.unpackb(data, raw=False)
    if code == COMPLEX:
        return complex(*content)
    if code not in (ARRAY, SCALAR):
        raise ValueError(f'unknown extension type {code}')
    shape, dtype_name, buffer = content
    array = _array(tuple(shape), dtype_name, buffer)
    return array if code == ARRAY else array[()]


def _array(shape: tuple[int, ...], dtype_name: str, buffer: bytes) -> np.ndarray:
    dtype = np.dtype('uint16' if dtype_name == 'bfloat16' else dtype_name)
    if dtype.kind not in 'biufc':
        raise ValueError(f'array of type {dtype_name!r}')
    if len(buffer) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{len(buffer)} bytes for an array of shape {shape} and type {dtype_name}')
    array = np.frombuffer(buffer, dtype).reshape(shape)
    if dtype_name == 'bfloat16':  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _join_chunks(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {key: _join_chunks(value) for key, value in tree.items()}
    shape, chunks = (
        [tree[part][str(i)] for i in range(len(tree[part]))] for part in ('shape', 'chunks')
    )
    return np.concatenate(chunks).reshape(shape)

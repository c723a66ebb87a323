"""Block sizes of the Triton kernels: fixed, or the fastest of a few with ``MMVITATTN_AUTOTUNE=1``.

The search is off by default: it compiles each kernel several times, and kernels with other blocks
sum in another order. A choice is made once for each operator, device, precision, set of
compile-time arguments and range of sizes, and kept in a file: later runs sum in the same order.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

from .triton_support import device_of

ENV_NAME = 'MMVITATTN_AUTOTUNE'
Result = TypeVar('Result')


class Blocks(NamedTuple):
    """How a kernel is launched: values in one program, or in one step of it, and warps for them."""

    elements: int
    warps: int = 4


SEARCH_SPACE = tuple(Blocks(n, warps) for n in (1024, 2048, 4096) for warps in (4, 8))


def launch_with_blocks(
    name: str,
    launch: Callable[[Blocks], Result],
    default: Blocks,
    x: Tensor,
    settings: Mapping[str, int],
) -> Result:
    """Launches an operator's kernels with the default blocks or, if asked for, the fastest ones.

    Args:
        name: of the operator.
        launch: allocates the outputs and launches the kernels; called several times by the search.
        default: blocks without a search.
        x: the largest input.
        settings: compile-time arguments that do not depend on the blocks.

    Returns:
        What ``launch`` returns.
    """
    with device_of(x):
        if not _searches():
            return launch(default)
        known, key = _known(cache_file()), _key(name, x, settings)
        if key not in known:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return launch(default)
            candidates = [default, *(blocks for blocks in SEARCH_SPACE if blocks != default)]
            known[key] = min(candidates, key=lambda blocks: _milliseconds(launch, blocks, x))
            _save(cache_file(), known)
        return launch(known[key])


def _searches() -> bool:
    return os.environ.get(ENV_NAME, '').lower() in ('1', 'true', 'yes', 'on')


def _key(name: str, x: Tensor, settings: Mapping[str, int]) -> str:
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else x.device.type
    size = 1 << (x.numel().bit_length() // 4 * 4)  # sizes up to 16 times as large share a choice
    parts = [name, device, f'triton {triton.__version__}', str(x.dtype), f'from {size} values']
    return ', '.join([*parts, *(f'{k} {v}' for k, v in sorted(settings.items()))])


def _milliseconds(launch: Callable[[Blocks], object], blocks: Blocks, x: Tensor) -> float:
    """Median time of a launch; infinite if it needs more registers or memory than there are."""
    try:
        if x.is_cuda:
            return triton.testing.do_bench(lambda: launch(blocks), return_mode='median')
        start = time.perf_counter()  # Triton's interpreter, in tests
        launch(blocks)
        return 1e3 * (time.perf_counter() - start)
    except triton.runtime.errors.OutOfResources:
        return float('inf')


def cache_file() -> Path:
    """Where the choices are kept; delete it to search again."""
    folder = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(folder).expanduser() / 'mmvitattn' / 'triton_blocks.json'


@functools.cache
def _known(file: Path) -> dict[str, Blocks]:
    return dict(_stored(file))


def _stored(file: Path) -> Iterator[tuple[str, Blocks]]:
    # A file that is not there or was damaged only costs another search.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        for key, blocks in json.loads(file.read_text()).items():
            yield key, Blocks(*map(int, blocks))


def _save(file: Path, known: Mapping[str, Blocks]) -> None:
    with contextlib.suppress(OSError):  # a read-only home: the choice holds for this process
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f'.{os.getpid()}')
        temporary.write_text(json.dumps({**dict(_stored(file)), **known}, indent=1))
        temporary.replace(file)

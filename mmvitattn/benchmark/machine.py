"""What depends on the machine: the timer, the memory allocator, peak memory, the rates it reaches.

Time on a CPU depends on how glibc hands out memory. For timing, freed memory stays with the
process; otherwise large buffers are mapped anew on each call, and the page faults can cost more
than what is measured. For peak memory it is the opposite: every buffer is a mapping of its own that
is returned at once, so that the resident set holds only what is alive. It also shows the scratch
memory of libraries, which PyTorch does not count.
"""

import ctypes
import functools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F

from ..ops.linear import linear
from ..process import mallopt
from . import Unavailable

ANOTHER_WARM_UP = 2.0  # seconds; slower calls are warm after one
_RETURN_FREED = {  # values of glibc's mallopt(3)
    **{'MMAP_THRESHOLD': 1 << 16, 'MMAP_MAX': 1 << 30},
    **{'TOP_PAD': 0, 'TRIM_THRESHOLD': 1 << 17},
}
_RESET_PEAK = '5'  # proc(5), clear_refs
Result = TypeVar('Result')


def default_threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, otherwise the cores that this process may use."""
    value = os.environ.get('OMP_NUM_THREADS', '')
    return int(value) if value.isdigit() and int(value) else len(os.sched_getaffinity(0))


def return_freed_memory() -> None:
    """Makes glibc return memory as soon as it is freed, for buffers of 64 KiB and more."""
    mallopt(_RETURN_FREED)
    trim()


def trim() -> None:
    """Returns the freed memory that glibc still holds to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):  # only glibc has it
        libc.malloc_trim(0)


def peak_on_cpu(call: Callable[[], object]) -> int | None:
    """Bytes by which one call raises the resident set; ``None`` where Linux does not report it.

    The call must have run before, because the first run also loads code.
    """
    trim()
    try:
        Path('/proc/self/clear_refs').write_text(_RESET_PEAK)
        before = _status('VmRSS')
        call()
        return _status('VmHWM') - before
    except OSError:
        return None


def _status(key: str) -> int:
    """A figure of ``/proc/self/status``, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {key}')


def peak_on_gpu(call: Callable[[], object]) -> int:
    """Bytes that one call allocates at its peak, by PyTorch's allocator."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_child(threads: int, function: Callable[..., Result], *args: object) -> Result:
    """Runs a function in a process of its own that returns freed memory at once.

    The process is forked: this one must not have computed on several threads before. The function,
    its arguments and its result are pickled.

    Raises:
        Unavailable: if the function raises an exception, or the system ends the process.
    """
    fork = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(1, fork, _prepare_child, (threads,)) as pool:
        try:
            return pool.submit(_attempt, function, *args).result()
        except BrokenProcessPool:
            reason = 'its process was ended by the system: out of memory?'
            raise Unavailable(reason) from None


def _prepare_child(threads: int) -> None:
    torch.set_num_threads(threads)
    return_freed_memory()


def _attempt(function: Callable[..., Result], *args: object) -> Result:
    try:
        return function(*args)
    except Unavailable:
        raise
    except Exception as error:  # the other contestants go on; the report shows this error
        raise Unavailable(failure(error)) from None


def failure(error: Exception) -> str:
    """One line that says that a contestant failed, and how."""
    lines = str(error).splitlines() or ['']
    return f'failed: {type(error).__name__}: {lines[0]}'


def warm_up(call: Callable[[], object], device: torch.device) -> float:
    """Calls until buffers, caches and compiled code are ready; seconds of the last call."""
    elapsed = sample(call, 1, device)
    return sample(call, 1, device) if elapsed < ANOTHER_WARM_UP else elapsed


def sample(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Mean seconds of consecutive calls.

    A GPU is timed by its own events, with its L2 cache overwritten before each call.
    """
    if device.type == 'cuda':
        cache = _larger_than_l2(device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize(device)
        for start, end in events:
            cache.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
        return sum(start.elapsed_time(end) for start, end in events) / 1000 / repeats
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


@functools.cache
def _larger_than_l2(device: torch.device) -> torch.Tensor:
    size = getattr(torch.cuda.get_device_properties(device), 'L2_cache_size', 1 << 27)  # torch 2.1
    return torch.empty(2 * size, dtype=torch.uint8, device=device)


def measure_rates(device: torch.device, dtype: torch.dtype, quick: bool) -> dict[str, float]:
    """Median rates per second of a large copy, a linear layer and a depth-wise convolution.

    A time cannot be shorter than its bytes (read and written) over the first or its FLOPs over the
    second (roofline); one multiply-add is two FLOPs.
    """
    on_gpu = device.type == 'cuda'

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    source = random((1 << 30 if on_gpu else 1 << 26) >> (6 if quick else 0))
    side = (8192 if on_gpu else 2048) >> (2 if quick else 0)
    images = random(1 if quick else 128 if on_gpu else 4, 64, 112, 112)
    images = images.to(memory_format=torch.channels_last)
    weight = random(64, 1, 7, 7)
    a, b = random(side, side), random(side, side)
    target = torch.empty_like(source)
    work: dict[str, tuple[Callable[[], object], int]] = {
        'copy_bytes': (lambda: target.copy_(source), 2 * source.nbytes),
        'matmul_flops': (lambda: linear(a, b), 2 * side**3),
        'depthwise_flops': (
            lambda: F.conv2d(images, weight, padding=3, groups=64),
            2 * images.numel() * 7**2,
        ),
    }
    rates = {}
    with torch.inference_mode():
        for name, (call, amount) in work.items():
            warm_up(call, device)
            times = [sample(call, 1, device) for _ in range(3 if quick else 9)]
            rates[name] = amount / statistics.median(times)
    return rates


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of usable cores."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores'

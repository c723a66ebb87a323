"""Peak memory of one call, over what weights and inputs hold.

CPU: the high-water mark of the resident set, reset through ``/proc``, in a child process whose
allocator holds nothing back (see :mod:`.allocator`); it also sees the scratch space of libraries,
which PyTorch does not count. GPU: the mark of PyTorch's allocator.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import allocator
from .cases import Unavailable

RESET_PEAK = '5'  # proc(5), clear_refs


def peak_on_cpu(call: Callable[[], None]) -> int | None:
    """Bytes by which one call raises the resident set; ``None`` where Linux does not tell.

    The call must have run before: its first run also loads code.

    Args:
        call: what is measured.
    """
    allocator.give_back()
    try:
        Path('/proc/self/clear_refs').write_text(RESET_PEAK)
        before = _status('VmRSS')
        call()
        return _status('VmHWM') - before
    except OSError:
        return None


def peak_on_gpu(call: Callable[[], None]) -> int:
    """Bytes that one call allocates at its peak.

    Args:
        call: what is measured.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_child(function: Callable[[], Any], threads: int) -> Any:
    """Runs a function in a forked process whose allocator holds nothing back.

    Only before this process has computed anything on several threads: a fork loses them.

    Args:
        function: returns something that can be pickled.
        threads: CPU threads of the child.

    Returns:
        What the function returns.

    Raises:
        Unavailable: if the function raises it, or fails, or the system ends the process.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(function, threads, sender))
    child.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    except EOFError:
        succeeded, result = False, 'its process was ended by the system: out of memory?'
    child.join()
    if not succeeded:
        raise Unavailable(result)
    return result


def _serve(function: Callable[[], Any], threads: int, sender: Any) -> None:
    torch.set_num_threads(threads)
    allocator.map_every_buffer()
    try:
        answer = (True, function())
    except Unavailable as reason:
        answer = (False, str(reason))
    except Exception as error:  # the other contestants go on; the table shows this one's error
        answer = (False, failure(error))
    sender.send(answer)


def failure(error: Exception) -> str:
    """One line that says that a contestant failed, and how."""
    lines = str(error).splitlines() or ['']
    return f'failed: {type(error).__name__}: {lines[0]}'


def _status(key: str) -> int:
    """A figure of ``/proc/self/status``, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {key}')

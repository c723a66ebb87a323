"""How glibc hands out memory, which on a CPU can cost more time than what is measured.

For timing, freed memory stays with the process: a large buffer is otherwise mapped anew on each
call, and its pages are faulted in one by one. For peak memory it is the opposite: every buffer is
a mapping of its own that goes back at once, so that the process holds what is alive and no more.
Imports nothing but the standard library: the settings must stand before torch is imported.
"""

import ctypes
import os
import sys

TIMING = {
    'MALLOC_MMAP_MAX_': '0',
    'MALLOC_TRIM_THRESHOLD_': '20000000000',
    'MALLOC_TOP_PAD_': '268435456',
}
THREADS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')
# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4


def default_threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, else the cores that this process may use."""
    value = os.environ.get(THREADS[0], '')
    return int(value) if value.isdigit() and int(value) else len(os.sched_getaffinity(0))


def restart_with(threads: int) -> None:
    """Starts this program again with the settings for timing, unless it runs with them.

    Args:
        threads: CPU threads of every operation.
    """
    settings = TIMING | dict.fromkeys(THREADS, str(threads))
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)


def map_every_buffer() -> None:
    """From now on, buffers of 64 KiB and more are mappings of their own, unmapped when freed."""
    for parameter, value in (
        (_MMAP_THRESHOLD, 1 << 16),
        (_MMAP_MAX, 1 << 30),
        (_TOP_PAD, 0),
        (_TRIM_THRESHOLD, 1 << 17),
    ):
        _call('mallopt', parameter, value)
    give_back()


def give_back() -> None:
    """Returns the freed memory that glibc still holds to the system."""
    _call('malloc_trim', 0)


def _call(function: str, *args: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, function):  # other C libraries have their own ways
        getattr(libc, function)(*args)

"""Settings that keep a process fast on CPUs, also beside other busy processes.

Importing ``mmvitattn`` applies them, before torch is imported, where the main program is one of its
tools; the processes of other programs are theirs to set (docs/speed.md, "Busy machines").

- ``GOMP_SPINCOUNT``: how long OpenMP's waiting threads spin before they sleep. By default they take
  the cores from the threads that they wait for as soon as another process needs one. A short spin
  costs nothing on a quiet machine; if others run when the tool starts, threads sleep at once.
- glibc's allocator keeps freed memory. By default it returns large buffers to the system at once,
  and mapping them anew, page by page, takes a quarter of a training step.
"""

import ctypes
import os
import statistics
import sys
import time
from pathlib import Path

ENV_NAME = 'MMVITATTN_PROCESS_SETTINGS'
# glibc's mallopt(3): parameter numbers, and values that keep freed memory.
MALLOPT = {'TRIM_THRESHOLD': -1, 'TOP_PAD': -2, 'MMAP_THRESHOLD': -3, 'MMAP_MAX': -4}
KEEP_FREED = {'MMAP_MAX': 0, 'TRIM_THRESHOLD': -1, 'TOP_PAD': 1 << 28}
SHORT_SPIN = '1000'  # rounds of libgomp's waiting loop
LOADAVG = Path('/proc/loadavg')
_OPENMP = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')
_ALLOCATOR = ('MALLOC_', 'GLIBC_TUNABLES', 'LD_PRELOAD')
_PROGRAMS = ('mmvitattn', 'mmvitattn-onnx')

applied: list[str] = []  # what was set, for the log


def prepare_tool() -> None:
    """Applies the settings if the main program is a tool of this package.

    Nothing is set on machines with an NVIDIA GPU, where the user has set the same himself, or where
    the environment variable ``MMVITATTN_PROCESS_SETTINGS`` is ``off``.

    Raises:
        ValueError: if that variable has another value than ``on`` and ``off``.
    """
    mode = os.environ.get(ENV_NAME, '').strip().lower() or 'on'
    if mode not in ('on', 'off'):
        raise ValueError(f"{ENV_NAME}={mode!r}: choose 'on' or 'off'")
    if mode == 'off' or applied or not _is_tool() or Path('/dev/nvidiactl').exists():
        return
    if 'torch' not in sys.modules and not any(name in os.environ for name in _OPENMP):
        os.environ['GOMP_SPINCOUNT'] = '0' if others_run() else SHORT_SPIN
        applied.append(f'GOMP_SPINCOUNT={os.environ["GOMP_SPINCOUNT"]}')
    if not any(name.startswith(_ALLOCATOR) for name in os.environ) and mallopt(KEEP_FREED):
        applied.append('the allocator keeps freed memory')


def others_run() -> bool:
    """Whether another process is using a core now, by the kernel's count of running threads."""
    counts = []
    for _ in range(9 if LOADAVG.exists() else 0):
        counts.append(int(LOADAVG.read_text().split()[3].partition('/')[0]))
        time.sleep(0.005)
    return bool(counts) and statistics.median(counts) > 1  # this process is one of them


def describe() -> str:
    """One line for the log of a tool: what was set, and how to turn it off."""
    settings = ', '.join(applied) or 'none'
    return f'Process settings: {settings} ({ENV_NAME}=off turns them off)'


def mallopt(values: dict[str, int]) -> bool:
    """Sets parameters of glibc's allocator, by name, for this process and those that it forks.

    Returns:
        Whether there is a glibc that accepted them all.
    """
    function = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    if function is None:
        return False
    return min(function(MALLOPT[name], value) for name, value in values.items()) == 1


def _is_tool() -> bool:
    program = Path(sys.argv[0] if sys.argv else '')
    if program.name == '-m':  # this package is imported to run its __main__
        return 'mmvitattn' in sys.orig_argv
    package = Path(__file__).resolve().parent
    folders = (package / '.mim/tools', package.parent / 'tools')
    return program.stem in _PROGRAMS or any(map(program.resolve().is_relative_to, folders))

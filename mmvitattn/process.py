"""Settings that keep a process fast on CPUs, also beside other busy processes.

Importing ``mmvitattn`` applies them where the main program is one of its tools; the processes of
other programs are theirs to set (docs/speed.md, "Busy machines").

- OpenMP's waiting threads spin, which is fast on a quiet machine. Beside another process they take
  the cores from the threads that they wait for, so that a training step takes several times as
  long. A thread of the tool lets them sleep as long as threads of the tool have to wait for cores.
- glibc's allocator keeps freed memory. By default it returns large buffers to the system at once,
  and mapping them anew, page by page, takes a quarter of a training step.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

ENV_NAME = 'MMVITATTN_PROCESS_SETTINGS'
# glibc's mallopt(3): parameter numbers, and values that keep freed memory.
MALLOPT = {'TRIM_THRESHOLD': -1, 'TOP_PAD': -2, 'MMAP_THRESHOLD': -3, 'MMAP_MAX': -4}
KEEP_FREED = {'MMAP_MAX': 0, 'TRIM_THRESHOLD': -1, 'TOP_PAD': 1 << 28}
CROWDED = 0.1  # share of the time that a thread waits for a core; on a quiet machine below 0.05
TASKS = Path('/proc/self/task')
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
    if TASKS.exists() and not any(name in os.environ for name in _OPENMP):
        threading.Thread(target=_watch_cores, daemon=True, name='watch_cores').start()
        applied.append('OpenMP threads sleep while others need the cores')
    if not any(name.startswith(_ALLOCATOR) for name in os.environ) and mallopt(KEEP_FREED):
        applied.append('the allocator keeps freed memory')


def _watch_cores(period: float = 1.0) -> None:
    """Keeps an idle team of OpenMP threads while threads of this process wait for cores."""
    waits, now, team = core_waits(), time.monotonic(), None
    while True:
        time.sleep(period)
        before, start, waits, now = waits, now, core_waits(), time.monotonic()
        longest = max((waits[i] - before[i] for i in waits.keys() & before.keys()), default=0.0)
        crowded = longest > CROWDED * (now - start)
        if crowded and team is None and (libraries := openmp_libraries()):
            team = IdleTeam(libraries)
            team.start()
        elif not crowded and team is not None:
            team.leave.set()
            team = None


def core_waits() -> dict[str, float]:
    """Seconds that each thread of this process could have run and had no core, by its number.

    From the kernel's scheduler statistics; empty where there are none.
    """
    waits = {}
    for task in TASKS.iterdir():
        with contextlib.suppress(OSError, IndexError):  # the thread has ended
            waits[task.name] = int((task / 'schedstat').read_text().split()[1]) / 1e9
    return waits


def openmp_libraries() -> set[str]:
    """Paths of the copies of GNU's OpenMP that this process has loaded."""
    lines = Path('/proc/self/maps').read_text().splitlines()
    return {line.split(maxsplit=5)[-1] for line in lines if 'libgomp' in line}


class IdleTeam(threading.Thread):
    """A team of OpenMP threads that does nothing, until :attr:`leave` is set.

    GNU's OpenMP lets waiting threads spin 300,000 rounds, but only 1,000 if a process has more
    threads than there are cores (its manual, ``GOMP_SPINCOUNT``). Unlike that variable, this works
    while the process runs.

    Args:
        libraries: paths of the copies of GNU's OpenMP.
    """

    def __init__(self, libraries: Iterable[str]) -> None:
        super().__init__(daemon=True, name='idle_team')
        self.libraries = libraries
        self.leave = threading.Event()

    def run(self) -> None:
        """Starts the team, which ends with this thread."""
        for library in map(ctypes.CDLL, self.libraries):
            nothing = ctypes.cast(library.omp_get_num_threads, ctypes.c_void_p)
            library.GOMP_parallel(nothing, None, len(os.sched_getaffinity(0)), 0)
        self.leave.wait()


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

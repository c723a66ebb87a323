"""The processes that load data: they outlive signals to the training, and their death is explained.

A signal to a whole job (torchrun, slurm, Ctrl-C) reaches them as well. They have to load on until
the training has saved a checkpoint.
"""

import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.queues import Queue
from typing import Any

from torch.utils.data import DataLoader

from ..errors import UsageError

SHARED_MEMORY = '/dev/shm'
DEATHS = re.compile(r'DataLoader worker \(pid|</torch_\d+')  # </torch_: a file in shared memory


def prepare_workers(loader: DataLoader) -> None:
    """Makes the workers that a data loader will start ignore signals, except from their parent.

    A worker that cannot hand over a batch, for want of shared memory, ends; it would go on
    otherwise, and the training wait for this batch forever.
    """
    init: Any = loader.worker_init_fn
    if not (isinstance(init, partial) and init.func is _init_worker):
        loader.worker_init_fn = partial(_init_worker, init)
    method = multiprocessing.get_start_method(allow_none=True)
    default = multiprocessing.get_all_start_methods()[0]
    if loader.num_workers and not loader.multiprocessing_context and (method or default) == 'fork':
        loader.multiprocessing_context = _WorkerContext()


class _Worker(ForkProcess):
    """A process all of whose threads block SIGTERM: PyTorch may start one before `_init_worker`."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _WorkerContext(ForkContext):
    Process = _Worker


def _init_worker(init: Callable[[int], Any] | None, worker_id: int) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    if init is not None:
        init(worker_id)


def _obey_parent() -> None:
    """Ends the process at a SIGTERM from its parent; others are dropped."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _end(error: Exception, batch: Any) -> None:
    try:
        print(f'a data loading worker cannot hand over a batch: {error}', flush=True)
    finally:
        os._exit(1)


@contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Turns the error of a data loader whose worker died into a :class:`UsageError`."""
    try:
        yield
    except RuntimeError as error:
        if not DEATHS.search(str(error)):
            raise
        free = total = 0
        if os.path.isdir(SHARED_MEMORY):
            total, _, free = shutil.disk_usage(SHARED_MEMORY)
        raise UsageError(
            f'a data loading worker died: {str(error).strip().splitlines()[-1]}\n'
            f'  It was killed, mostly for want of memory, or found no shared memory: {free:,} of '
            f'{total:,} bytes of {SHARED_MEMORY} are free now.\n'
            '  Use fewer workers or smaller batches (--cfg-options train_dataloader.num_workers=2 '
            'train_dataloader.batch_size=2),\n'
            '  or give a container more shared memory (docker run --shm-size=8g, or --ipc=host).\n'
            '  A training continues from its last checkpoint with --resume.'
        ) from error

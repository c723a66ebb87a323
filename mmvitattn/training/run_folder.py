"""The folder of a run: one run at a time, the checkpoint to resume, logs that cannot be written."""

import fcntl
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.visualization import LocalVisBackend

from ..checkpoint import load_checkpoint
from ..errors import UsageError

LAST, LOCK = 'last_checkpoint', '.lock'
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')  # by launcher


def check_run_folder(work_dir: str | Path, checkpoint: str | None, resume: bool) -> bool:
    """Checks that a run does not overwrite an earlier one.

    Args:
        work_dir: folder of the run.
        checkpoint: the file to resume from; ``None`` for the last one in ``work_dir``.
        resume: whether the run is to be resumed.

    Returns:
        Whether a checkpoint will be resumed.

    Raises:
        UsageError: if ``work_dir`` contains checkpoints of another run than the one to resume.
    """
    work_dir = Path(work_dir)
    holds_run = (work_dir / LAST).exists()
    same_run = not checkpoint or Path(checkpoint).resolve().parent == work_dir.resolve()
    if holds_run and not (resume and same_run):
        raise UsageError(
            f'{work_dir} already contains the checkpoints of a run. Continue it: --resume; keep it '
            'and start another: --work-dir DIR'
        )
    return bool(resume and (checkpoint or holds_run))


@contextmanager
def locked(work_dir: str | Path, launcher: str) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs; the first process does so for all.

    The lock is the operating system's: it ends with the process, whatever ends that.

    Args:
        work_dir: folder of the run; made if it is missing.
        launcher: that started the processes.

    Raises:
        UsageError: if another run holds the lock.
    """
    if not _is_first(launcher):
        yield
        return
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    with Path(work_dir, LOCK).open('a+') as file:
        try:
            # Unlike flock, this is not inherited by the workers that load data.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UsageError(
                f'{work_dir} is the folder of a training that is running '
                f'({file.readline().strip()}); end it, or choose another: --work-dir DIR'
            ) from None
        except OSError as error:
            print(f'warning: {work_dir} cannot be locked: {error}', file=sys.stderr)
        with suppress(OSError):  # a full disk
            holder = f'process {os.getpid()} on {socket.gethostname()}\n{_parent()}'
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), holder.encode())
        yield


def restarted(work_dir: str | Path, launcher: str) -> bool:
    """Whether torchrun has started this process again, and the run in the folder is its own.

    The folder may contain another run, for which the first attempt was refused.
    """
    if launcher != 'pytorch' or not int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        return False
    lock = Path(work_dir, LOCK)
    own = not _is_first(launcher) or (lock.is_file() and _parent() in lock.read_text())
    return own and Path(work_dir, LAST).exists()


def _is_first(launcher: str) -> bool:
    return os.environ.get(RANKS.get(launcher, ''), '0') == '0'


def _parent() -> str:
    return f'started by {os.getppid()}\n'


def find_resumable(work_dir: str | Path, trust: bool) -> tuple[str, dict[str, Any]] | None:
    """Reads the last checkpoint of a run, or the newest other one if that cannot be resumed.

    Args:
        work_dir: folder of the run.
        trust: read files whatever they contain.

    Returns:
        The path and the content; ``None`` if the run has written no checkpoint yet.

    Raises:
        UsageError: if none passes the checks.
    """
    record = Path(work_dir, LAST)
    if not record.exists():
        return None
    last = record.read_text().strip()  # empty if the disk was full
    others = sorted(Path(work_dir).glob('*.pth'), key=os.path.getmtime, reverse=True)
    reasons: list[str] = []
    for path in dict.fromkeys([last or LAST, *map(str, others)]):
        try:
            checkpoint = load_checkpoint(path, trust)
            check_progress(path, checkpoint)
        except UsageError as error:
            reasons.append(str(error))
            continue
        if path == last or 'optimizer' in checkpoint:  # those of the best weights have none
            for reason in reasons:
                print(f'warning: {reason}; resuming from {path} instead', file=sys.stderr)
            return path, checkpoint
    lines = '\n'.join(f'  {reason}' for reason in reasons)
    raise UsageError(f'{work_dir} has no checkpoint that can be resumed:\n{lines}')


def check_progress(path: str, checkpoint: dict) -> None:
    """Checks that a checkpoint contains the state of a training.

    Raises:
        UsageError: if it does not.
    """
    progress = {'epoch', 'iter'} <= set(checkpoint.get('meta') or ())
    if not (progress and 'message_hub' in checkpoint):
        raise UsageError(
            f'--resume: {path} contains no state of a training; to start from its weights, '
            f'replace --resume by --cfg-options load_from={path}'
        )


def tolerate_unwritable_logs() -> None:
    """Makes MMEngine go on, with one warning, if logs and copies of the config cannot be written.

    On a full disk, a training could otherwise not be resumed, not even to end with a clear error.
    """
    logging.raiseExceptions = False  # no traceback for each line that cannot be written
    owners = ((Config, 'dump'), (LocalVisBackend, '_dump'), (BaseModule, '_dump_init_info'))
    for owner, name in owners:
        method = getattr(owner, name)
        if not hasattr(method, 'tolerant'):
            setattr(owner, name, _with_warning(method))


def _with_warning(write: Callable[..., Any]) -> Callable[..., Any]:
    warned: list[bool] = []

    @functools.wraps(write)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return write(*args, **kwargs)
        except OSError as error:
            if not warned:
                print(f'warning: logs cannot be written: {error}', file=sys.stderr)
            warned.append(True)

    wrapped.tolerant = True  # type: ignore[attr-defined]
    return wrapped

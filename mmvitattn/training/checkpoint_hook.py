"""Checkpoints that a full disk, a signal or a killed process cannot spoil."""

import shutil
import signal
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import Runner

from ..checkpoint.writing import TEMPORARY, write_atomically
from ..registry import HOOKS
from .data_workers import prepare_workers
from .run_folder import LAST
from .signals import StopSignals

INTERRUPTED = 'interrupted.pth'
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: not an error, try again


class AtomicBackend(LocalBackend):
    """MMEngine's access to local files, which appear completely or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(obj, Path(filepath))


class LateRemoval:
    """A file backend that notes what is to be removed instead of removing it."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.outdated = backend, list[str]()

    def __getattr__(self, name: str) -> Any:
        """Other methods are those of the backend."""
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Notes a file or folder."""
        self.outdated.append(path)

    rmtree = remove


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, with checkpoints that are complete and survive interruptions.

    - A file is written under another name and renamed when it is complete and on the disk. Older
      ones are removed after that, not before. If the disk is full, one error states the bytes
      needed and free; before training, a warning says if that is to be expected.
    - At SIGTERM, SIGUSR1 or Ctrl-C, all processes finish the iteration, save ``interrupted.pth``
      and exit with status 75. ``--resume`` continues from there; with
      :class:`~mmvitattn.training.exact_resume.ExactResumeHook`, the final weights are those of an
      uninterrupted run. During validation they exit at once if the last checkpoint is up to date,
      otherwise after the next iteration of training. A second Ctrl-C ends the process at once.

    Args:
        kwargs: see MMEngine's CheckpointHook.
    """

    file_backend: Any
    signals: StopSignals | None = None
    saved_iter = -1  # iterations that the last checkpoint contains

    def before_train(self, runner: Runner) -> None:
        """Removes what a killed process left, and starts to note signals."""
        register_backend('local', AtomicBackend, force=True, prefixes='')
        super().before_train(runner)
        self.file_backend = LateRemoval(self.file_backend)
        if is_main_process() and Path(self.out_dir).is_dir():
            for left in Path(self.out_dir).glob(f'.*.pth.*{TEMPORARY}'):
                left.unlink()
            self._warn_of_little_space(runner)
        self.signals = StopSignals()
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                prepare_workers(loop.dataloader)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint if one is due, or if the training has to stop."""
        super().after_train_iter(runner, batch_idx, *args, **kwargs)
        if self.signals and (number := self.signals.agreed()):
            self._save_interrupted(runner)
            self.signals.wait_for_all()
            self._exit(runner, number)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Exits if the training has to stop and nothing has to be saved."""
        if self.signals and self.signals.number and self.saved_iter == runner.iter:
            self._exit(runner, self.signals.number)

    def after_train(self, runner: Runner) -> None:
        """Ends noting signals."""
        super().after_train(runner)
        if self.signals:
            self.signals.restore()
            self.signals = None

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(runner)
        self.saved_iter = runner.iter if self.by_epoch else runner.iter + 1
        self._remove_outdated()
        if is_main_process():
            Path(self.out_dir, INTERRUPTED).unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        backend = self.file_backend
        best = getattr(self, 'best_ckpt_path_dict', {None: getattr(self, 'best_ckpt_path', None)})
        for path in set(backend.outdated) - {self.last_ckpt, *best.values()}:
            (backend.backend.rmtree if backend.isdir(path) else backend.backend.remove)(path)
        backend.outdated = []

    def _save_interrupted(self, runner: Runner) -> None:
        if self.saved_iter == runner.iter + 1:
            return
        runner.save_checkpoint(
            self.out_dir,
            INTERRUPTED,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=dict(epoch=runner.epoch, iter=runner.iter + 1),
            by_epoch=False,
            backend_args=self.backend_args,
        )
        if is_main_process():
            path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
            Path(runner.work_dir, LAST).write_text(path)

    def _exit(self, runner: Runner, number: int) -> NoReturn:
        runner.logger.info(
            f'{signal.Signals(number).name}: the training is saved and ends with status '
            f'{EXIT_STATUS}; continue it with --resume'
        )
        raise SystemExit(EXIT_STATUS)

    def _warn_of_little_space(self, runner: Runner) -> None:
        """Compares the free space with an estimate of what the run will keep."""
        model, folder = runner.model, Path(self.out_dir)
        weights = sum(t.nbytes for t in chain(model.parameters(), model.buffers()))
        moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)  # of Adam
        averages = weights * any(isinstance(hook, EMAHook) for hook in runner.hooks)
        size = weights + averages + moments * self.save_optimizer
        left = runner.max_epochs - runner.epoch if self.by_epoch else runner.max_iters - runner.iter
        number = max(left // self.interval, 1) if self.interval > 0 else 1
        if self.max_keep_ckpts > 0:
            number = min(number, self.max_keep_ckpts + 1)  # one before the oldest is removed
        needed = number * size + len(self.save_best or ()) * (weights + averages)
        if self.max_keep_ckpts > 0:
            needed -= sum(path.stat().st_size for path in folder.glob('*.pth'))
        free = shutil.disk_usage(folder).free
        if needed > free:
            runner.logger.warning(
                f'{folder} has {free:,} bytes free, and the checkpoints of this run need about '
                f'{needed:,}: make room, use another --work-dir, or keep fewer '
                '(--cfg-options default_hooks.checkpoint.max_keep_ckpts=1)'
            )

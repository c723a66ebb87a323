"""Trains the runs of a comparison, one after the other; finished ones are kept."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvitattn import cli
from mmvitattn.checkpoint import use_safe_loading
from mmvitattn.errors import UsageError
from mmvitattn.training import checks
from mmvitattn.training.run_logs import SCALARS, RunLog, read_run

from .budget import SETTINGS, as_json, check_same, run_config
from .sets import Row

MODEL = 'model.json'
TOP1, LOSS, TIME = 'accuracy/top1', 'loss', 'time'


@dataclass
class Run:
    """One training: a row under one seed.

    Attributes:
        row: whose model is trained.
        seed: of all its randomness.
        cfg: its whole config.
    """

    row: Row
    seed: int
    cfg: Config

    @property
    def work_dir(self) -> Path:
        """Its folder."""
        return Path(self.cfg.work_dir)

    @property
    def name(self) -> str:
        """For messages."""
        return f'{self.row.name}, seed {self.seed}'

    def log(self) -> RunLog | None:
        """What it has logged so far, ``None`` before its first epoch is over."""
        return read_run(self.work_dir, self.name) if self._has_logged() else None

    def _has_logged(self) -> bool:
        files = self.work_dir.glob(f'*/vis_data/{SCALARS}')
        return any('"iter"' in file.read_text(encoding='utf-8') for file in files)

    def validated_epochs(self) -> set[int]:
        """Epochs of which the accuracy is known."""
        log = self.log()
        known = log is not None and TOP1 in log.curves
        return {round(x) for x in log.positions(TOP1, by_epoch=True)} if known else set()

    def is_finished(self) -> bool:
        """Whether the accuracy of the last epoch is known."""
        return self.cfg.train_cfg.max_epochs in self.validated_epochs()


def plan_runs(
    rows: Sequence[Row],
    seeds: Sequence[int],
    common: Config,
    settings: Mapping[str, Any],
    out_dir: Path,
) -> list[Run]:
    """All runs, after every check.

    Args:
        rows: to compare.
        seeds: each row is trained once with each.
        common: config of :func:`.budget.common_config`.
        settings: of the same.
        out_dir: a folder for each row and seed is made in it.

    Returns:
        The runs, seed by seed.

    Raises:
        UsageError: if a row cannot be trained, or a run there had another model.
    """
    runs = []
    for seed in seeds:
        for row in rows:
            work_dir = out_dir / row.folder / f'seed_{seed}'
            run = Run(row, seed, run_config(common, row, settings, seed, work_dir))
            if (work_dir / MODEL).is_file():
                place = f'{work_dir} (row {row.name})'
                check_same(_model_of(run), work_dir / MODEL, 'a run', place)
            runs.append(run)
    return runs


def _model_of(run: Run) -> dict[str, Any]:
    return Config(dict(model=run.cfg.model)).model.to_dict()


def train_runs(runs: Sequence[Run], record: Mapping[str, Any], out_dir: Path) -> None:
    """Trains what is not finished yet.

    Args:
        runs: of :func:`plan_runs`.
        record: the settings, which the folder keeps.
        out_dir: the folder.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_once(out_dir / SETTINGS, record)
    use_safe_loading(False)
    for number, run in enumerate(runs, start=1):
        title = f'[{number}/{len(runs)}] {run.name}'
        if run.is_finished():
            print(f'{title}: finished before', flush=True)
            continue
        _train(run, title)


def _train(run: Run, title: str) -> None:
    cfg, work_dir = run.cfg, run.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    _write_once(work_dir / MODEL, _model_of(run))
    checkpoint = _checkpoint_to_resume(run)
    if checkpoint:
        cfg.update(resume=True, load_from=str(checkpoint))
        checks.check_checkpoints(cfg, trust=False)
    # MMEngine keeps loggers and writers by name for as long as the process lives.
    cfg.experiment_name = f'{run.row.folder}_seed_{run.seed}_{time.time_ns()}'
    cfg.visualizer.name = cfg.experiment_name
    runner = cli.build_runner(cfg)
    runner.register_hook(ProgressHook(title), priority='LOWEST')
    try:
        runner.train()
    finally:
        for loader in (runner.train_dataloader, runner.val_dataloader):
            loader._iterator = None  # ends its processes now; the collector would wait for them
    if not run.is_finished():
        raise UsageError(f'{work_dir} has logged no accuracy of the last epoch; remove it')


def _checkpoint_to_resume(run: Run) -> Path | None:
    """The last one whose epoch was validated as well, so that no accuracy is left out."""
    validated = run.validated_epochs()
    found = {
        int(match[1]): path
        for path in run.work_dir.glob('epoch_*.pth')
        if (match := re.fullmatch(r'epoch_(\d+)', path.stem)) and int(match[1]) in validated
    }
    return found[max(found)] if found else None


def _write_once(file: Path, content: Mapping[str, Any]) -> None:
    if not file.exists():
        file.write_text(as_json(content), encoding='utf-8')


class ProgressHook(Hook):
    """One line an epoch.

    Args:
        title: of the run, which begins the line.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.start: tuple[int, float] | None = None

    def before_train(self, runner: Runner) -> None:
        """Starts the clock."""
        self.start = (runner.epoch, time.monotonic())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Prints loss, accuracy and the time that is left, with all validations."""
        epoch, total = runner.epoch, runner.max_epochs
        first, began = self.start
        left = (time.monotonic() - began) / max(epoch - first, 1) * (total - epoch)
        loss = runner.message_hub.get_scalar(f'train/{LOSS}').mean(len(runner.train_dataloader))
        print(
            f'{self.title}: epoch {epoch}/{total}, loss {loss:.4f}, '
            f'top-1 {metrics[TOP1]:.1f}, {left / 60:.1f} min left',
            flush=True,
        )

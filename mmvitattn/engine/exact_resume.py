"""A resumed training ends with the weights of one that was never interrupted."""

from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import IterableDataset

from ..registry import HOOKS
from .seeded_batches import EPOCH, ITERATION, EndlessIterator, SeededBatches, seed_process

KEY = 'exact_resume'  # of the checkpoint


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a training that was killed and resumed bit-identical to an uninterrupted one.

    MMEngine restores weights, optimizer, schedules and averages, but neither generators nor the
    place in an epoch. With this hook

    - every generator of the process (Python's, NumPy's, torch's on CPU and GPUs) is set at the
      start of each iteration, from the seed and the number of the iteration;
    - the generators are set for each sample that is loaded, from the seed, the rank and the place
      of the sample in the training, in whichever worker;
    - a resumed run begins with the batch after the last one trained, also within an epoch, and
      loads none of those before;
    - the checkpoint holds, under 'exact_resume', what else decides the order of the data.

    So no state of a generator has to be saved, for no process and no worker, and the result does
    not depend on the number of workers either. It is the same bit for bit where the computation
    itself is deterministic: on CPUs, and on GPUs with ``randomness=dict(deterministic=True)``.

    Not restored are: caches that transforms keep from one sample to the next; gradients of an
    accumulation that a checkpoint interrupts; what a validation after the last checkpoint has
    changed (ReduceOnPlateau). With another number of processes or batches, or a data set that is
    an iterable, training goes on, but as another one; a warning says so.
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None
        self.batches: SeededBatches | None = None
        self.trained = 0  # batches of the current epoch that an earlier run has trained
        self.renumbered = False  # whether the loop counts the batches of this epoch as we say

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps what the earlier run has saved."""
        self.saved = checkpoint.get(KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds what decides the order of the data, as plain numbers."""
        if self.batches is not None:
            checkpoint[KEY] = self._describe(runner)

    def before_train(self, runner: Runner) -> None:
        """Takes over the loader's batch sampler, and finds the place in it."""
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        self.batches, self.trained = None, 0
        batch_sampler = getattr(loader, 'batch_sampler', None)
        if batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            runner.logger.warning(
                'ExactResumeHook: the data comes without a batch sampler, so that no place in it '
                'can be found again: a resumed training will differ from an uninterrupted one'
            )
            return
        if isinstance(batch_sampler, SeededBatches):  # trained before
            batch_sampler = batch_sampler.batch_sampler
        endless = hasattr(loop, 'dataloader_iterator')
        self.batches = SeededBatches(batch_sampler, runner.seed, get_rank(), endless)
        # DataLoader keeps its parts from being set, lest they contradict each other.
        object.__setattr__(loader, 'batch_sampler', self.batches)
        loader._iterator = None  # workers that live on hold the former batch sampler
        if runner.iter > 0:
            self._restore(runner)
        if endless:
            self._restart_iterator(loop, runner.iter)
        else:
            self.trained = self._trained_of_epoch(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Says to the batch sampler where it begins."""
        if self.batches is None:
            return
        seed_process(runner.seed, EPOCH, runner.epoch)
        if self.batches.endless:
            return
        trained, self.trained = self.trained, 0
        self.batches.first, self.batches.skip = runner.iter - trained, trained
        if trained:
            _count_from(runner.train_loop, trained)
            self.renumbered = True

    def after_train_epoch(self, runner: Runner) -> None:
        """The next epoch's batches count from 0."""
        if self.renumbered:
            del runner.train_loop.run_iter
            self.renumbered = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Sets every generator."""
        seed_process(runner.seed, ITERATION, runner.iter)

    def _describe(self, runner: Runner) -> dict[str, Any]:
        seed = getattr(getattr(self.batches, 'sampler', None), 'seed', None)
        counted = hasattr(self.batches.batch_sampler, '__len__')
        return dict(
            sampler_seed=seed if isinstance(seed, int) else None,
            processes=get_world_size(),
            batches_per_epoch=len(self.batches) if counted else None,
        )

    def _restore(self, runner: Runner) -> None:
        """Gives the sampler the seed that it had, and compares the rest."""
        otherwise = 'the training goes on, but not as it would have without the interruption'
        if self.saved is None:
            runner.logger.warning(
                f'ExactResumeHook: the checkpoint was written without this hook: {otherwise}'
            )
            return
        if self.saved['sampler_seed'] is not None:  # without a seed in the config, a random one
            self.batches.sampler.seed = self.saved['sampler_seed']
        now = self._describe(runner)
        for name in ('processes', 'batches_per_epoch'):
            if self.saved[name] != now[name]:
                change = f'{name} was {self.saved[name]} and is {now[name]}'
                runner.logger.warning(f'ExactResumeHook: {change}: {otherwise}')

    def _restart_iterator(self, loop: Any, iteration: int) -> None:
        """An iterator of ours for an iteration-based loop; MMEngine's may have drawn already."""
        sampler = getattr(self.batches, 'sampler', None)
        if isinstance(sampler, InfiniteSampler):
            sampler.indices = sampler._indices_of_rank()
        self.batches.skip = iteration
        loop_draws = not hasattr(loop.dataloader_iterator, 'skip_iter')
        loop.dataloader_iterator = EndlessIterator(
            loop.dataloader, to_pass=iteration if loop_draws else 0
        )

    def _trained_of_epoch(self, runner: Runner) -> int:
        """Batches of the current epoch before the place of the checkpoint."""
        length = len(self.batches)
        trained = runner.iter - runner.epoch * length
        return trained if 0 <= trained <= length else 0


def _count_from(loop: Any, first: int) -> None:
    """Lets an epoch-based loop count the batches of this epoch from another number than 0."""
    run_iter = loop.run_iter

    def run_counted(index: int, data_batch: Any) -> Any:
        return run_iter(index + first, data_batch)

    loop.run_iter = run_counted

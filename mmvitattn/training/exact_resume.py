"""A resumed training ends with the weights of one that was never interrupted."""

from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import IterableDataset

from ..registry import HOOKS
from .seeded_batches import EPOCH, ITERATION, EndlessIterator, SeededBatches, seed_process

KEY = 'exact_resume'  # in the checkpoint


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a training that was killed and resumed bit-identical to an uninterrupted one.

    MMEngine restores weights, optimizer, schedules and averages, but neither the random generators
    nor the position in an epoch. With this hook

    - every generator of the process (Python's, NumPy's, torch's on CPU and GPUs) is seeded at the
      start of each iteration, from the seed and the number of the iteration;
    - the generators are seeded for each sample that is loaded, in any worker, from the seed, the
      rank and the position of the sample in the training;
    - a resumed run starts with the batch after the last one trained, also within an epoch, and
      loads none of the batches before it;
    - the checkpoint contains, under 'exact_resume', what else determines the order of the data.

    So no state of a generator has to be saved, and the result does not depend on the number of
    workers either. It is bit-identical if the computation itself is deterministic: on CPUs, and on
    GPUs with ``randomness=dict(deterministic=True)``.

    Not restored: caches that transforms keep from one sample to the next; accumulated gradients at
    the time of the checkpoint; what a validation after the last checkpoint has changed
    (ReduceOnPlateau). With another number of processes or batches, or an iterable data set, the
    training continues, but differs from an uninterrupted one; a warning says so.
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None
        self.batches: SeededBatches | None = None
        self.trained = 0  # batches of the current epoch that an earlier run has trained
        self.renumbered = False  # whether the loop's count of this epoch's batches is shifted

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps what the earlier run saved."""
        self.saved = checkpoint.get(KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds what determines the order of the data, as plain numbers."""
        if self.batches is not None:
            checkpoint[KEY] = _describe(self.batches)

    def before_train(self, runner: Runner) -> None:
        """Replaces the loader's batch sampler by one at the position of the checkpoint."""
        loop: Any = runner.train_loop
        loader = loop.dataloader
        self.batches, self.trained = None, 0
        batch_sampler = getattr(loader, 'batch_sampler', None)
        if batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            runner.logger.warning(
                'ExactResumeHook: the data loader has no batch sampler, so its position cannot be '
                'restored: a resumed training will differ from an uninterrupted one'
            )
            return
        if isinstance(batch_sampler, SeededBatches):  # trained before
            batch_sampler = batch_sampler.batch_sampler
        endless = hasattr(loop, 'dataloader_iterator')
        self.batches = batches = SeededBatches(batch_sampler, runner.seed, get_rank(), endless)
        # DataLoader refuses a normal assignment of this attribute.
        object.__setattr__(loader, 'batch_sampler', batches)
        loader._iterator = None  # persistent workers use the former batch sampler
        if runner.iter > 0:
            self._restore(runner, batches)
        if endless:
            _restart_iterator(loop, batches, runner.iter)
        else:  # what this epoch trained before the checkpoint, unless the length has changed
            trained = runner.iter - runner.epoch * len(batches)
            self.trained = trained if 0 <= trained <= len(batches) else 0

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets the number of the batch that the batch sampler starts with."""
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
        """Restores the loop's count of batches, which starts at 0."""
        if self.renumbered:
            del runner.train_loop.run_iter
            self.renumbered = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Seeds every generator."""
        seed_process(runner.seed, ITERATION, runner.iter)

    def _restore(self, runner: Runner, batches: SeededBatches) -> None:
        """Restores the sampler's seed and compares the rest."""
        otherwise = 'the training continues, but differs from an uninterrupted one'
        if self.saved is None:
            runner.logger.warning(
                f'ExactResumeHook: the checkpoint was written without this hook: {otherwise}'
            )
            return
        if self.saved['sampler_seed'] is not None:  # random if the config has none
            batches.sampler.seed = self.saved['sampler_seed']
        now = _describe(batches)
        for name in ('processes', 'batches_per_epoch'):
            if self.saved[name] != now[name]:
                change = f'{name} was {self.saved[name]} and is {now[name]}'
                runner.logger.warning(f'ExactResumeHook: {change}: {otherwise}')


def _describe(batches: SeededBatches) -> dict[str, Any]:
    """What determines the order of the data, as plain numbers."""
    seed = getattr(getattr(batches, 'sampler', None), 'seed', None)
    counted = hasattr(batches.batch_sampler, '__len__')
    return dict(
        sampler_seed=seed if isinstance(seed, int) else None,
        processes=get_world_size(),
        batches_per_epoch=len(batches) if counted else None,
    )


def _restart_iterator(loop: Any, batches: SeededBatches, iteration: int) -> None:
    """Replaces an iteration-based loop's iterator, which may have drawn batches already."""
    sampler = getattr(batches, 'sampler', None)
    if isinstance(sampler, InfiniteSampler):
        sampler.indices = sampler._indices_of_rank()
    batches.skip = iteration
    loop_draws = not hasattr(loop.dataloader_iterator, 'skip_iter')
    to_skip = iteration if loop_draws else 0
    loop.dataloader_iterator = EndlessIterator(loop.dataloader, to_skip)


def _count_from(loop: Any, first: int) -> None:
    """Makes an epoch-based loop count the batches of this epoch from ``first`` instead of 0."""
    run_iter = loop.run_iter
    loop.run_iter = lambda index, data_batch: run_iter(index + first, data_batch)

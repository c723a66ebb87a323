"""Random numbers that depend only on the seed and the position in the training, not on its history.

The state of a generator after n steps depends on all numbers drawn before, some of them in worker
processes whose state cannot be read. Here every generator is seeded again for each iteration and
each sample, so that a training can start at any of its steps, with any number of workers.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import chain, count, repeat
from typing import Any

import numpy as np
import torch

EPOCH, ITERATION, SAMPLE = 1, 2, 3  # kinds of positions


def seed_process(seed: int, kind: int, number: int) -> None:
    """Seeds every generator of this process: Python's, NumPy's, torch's on CPU and all devices.

    Args:
        seed: of the training, in this process.
        kind: ``EPOCH`` or ``ITERATION``.
        number: of the epoch or iteration that begins, from 0.
    """
    torch.manual_seed(_seed_host(seed, (kind, number)))


def seed_sample(seed: int, position: tuple[int, int, int]) -> None:
    """Seeds the generators that loading and augmenting an image use, none of a device.

    Args:
        seed: of the training.
        position: rank of the process, number of the batch, position in the batch.
    """
    torch.default_generator.manual_seed(_seed_host(seed, (SAMPLE, *position)))


def _seed_host(seed: int, position: tuple[int, ...]) -> int:
    """Seeds Python's and NumPy's generators; returns a seed for torch's."""
    words = np.random.SeedSequence(seed, spawn_key=position).generate_state(6)
    random.seed(_as_integer(words[:2]))
    np.random.seed(words[2:4])
    return _as_integer(words[4:])


def _as_integer(words: np.ndarray) -> int:
    return int(words[0]) << 32 | int(words[1])


class SeededBatch:
    """Indices of a batch; iterating over them seeds the generators for each sample in turn.

    A data loader sends this object to a worker, which loads ``dataset[index]`` for each index: so
    the random numbers of a sample, and those of collating the batch after the last one, depend only
    on its position. With ``num_workers=0`` this happens in the main process, whose generators are
    seeded again when the iteration begins.

    Args:
        indices: of the samples.
        seed: of the training.
        rank: of the process.
        number: of the batch, counted from the start of the training.
    """

    def __init__(self, indices: Iterable[int], seed: int, rank: int, number: int) -> None:
        self.indices = list(indices)
        self.seed, self.rank, self.number = seed, rank, number

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        """Yields each index after seeding the generators for it."""
        for position, index in enumerate(self.indices):
            seed_sample(self.seed, (self.rank, self.number, position))
            yield index


class SeededBatches:
    """A batch sampler that numbers its batches and can start at any of them.

    To start later, it draws the indices of the batches before, but loads nothing.

    Args:
        batch_sampler: the sampler of the data loader; its attributes are available here as well.
        seed: of the training.
        rank: of the process.
        endless: continue with the next epoch, as iteration-based loops do.

    Attributes:
        first: number of the first batch of the next pass.
        skip: how many batches of that pass have been trained already.
    """

    def __init__(self, batch_sampler: Iterable, seed: int, rank: int, endless: bool) -> None:
        self.batch_sampler: Any = batch_sampler
        self.seed, self.rank, self.endless = seed, rank, endless
        self.first = self.skip = 0

    def __getattr__(self, name: str) -> Any:
        """Attributes of the batch sampler."""
        if name == 'batch_sampler':  # not yet set while a copy is made
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[SeededBatch]:
        """Yields the batches of one pass, or of all that follow."""
        first, skip = self.first, self.skip
        self.skip = 0
        for position, indices in enumerate(self._indices()):
            if position >= skip:
                yield SeededBatch(indices, self.seed, self.rank, first + position)

    def _indices(self) -> Iterator[Iterable[int]]:
        if not self.endless:
            yield from self.batch_sampler
            return
        sampler: Any = getattr(self.batch_sampler, 'sampler', None)
        for epoch in count():
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
            empty = True
            for indices in self.batch_sampler:
                empty = False
                yield indices
            if empty:
                return


class EndlessIterator:
    """Replaces the iterator from which an iteration-based loop of MMEngine draws its batches.

    A resumed loop skips the batches that were trained already by drawing them, or with
    ``skip_iter`` in versions of MMEngine that have it. Here the sampler has skipped them.

    Args:
        dataloader: with an endless :class:`SeededBatches`.
        to_skip: how many batches the loop draws to skip them; it gets ``None`` for each.
    """

    def __init__(self, dataloader: Iterable, to_skip: int) -> None:
        self.batches = chain(repeat(None, to_skip), dataloader)  # starts the loader when needed

    def __iter__(self) -> 'EndlessIterator':
        """Returns itself."""
        return self

    def __next__(self) -> Any:
        """The next batch."""
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Does nothing."""

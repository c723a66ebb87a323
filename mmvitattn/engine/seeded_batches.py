"""Randomness as a function of the seed and the place in the training, not of its history.

The state of a generator after n steps is the sum of all that was drawn before, some of it in
worker processes that nobody can look into. Here every generator is set anew, from the seed and the
number of the iteration or sample, so that a training can begin at any of its steps, with any
number of workers.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

EPOCH, ITERATION, SAMPLE = 1, 2, 3  # set the streams apart


def _spread(seed: int, place: tuple[int, ...]) -> np.ndarray:
    """Six words of 32 bits, two for each generator, that no other place has."""
    return np.random.SeedSequence(seed, spawn_key=place).generate_state(6)


def _as_integer(words: np.ndarray) -> int:
    return int(words[0]) << 32 | int(words[1])


def seed_process(seed: int, kind: int, number: int) -> None:
    """Sets every generator of this process: Python's, NumPy's, torch's on CPU and on all devices.

    Args:
        seed: of the training, in this process.
        kind: ``EPOCH`` or ``ITERATION``.
        number: of the epoch or iteration that begins, from 0.
    """
    words = _spread(seed, (kind, number))
    random.seed(_as_integer(words[:2]))
    np.random.seed(words[2:4])
    torch.manual_seed(_as_integer(words[4:]))


def seed_sample(seed: int, place: tuple[int, int, int]) -> None:
    """Sets the generators that loading and augmenting a picture draw from; devices' are left.

    Args:
        seed: of the training.
        place: rank of the process, number of the batch, position in the batch.
    """
    words = _spread(seed, (SAMPLE, *place))
    random.seed(_as_integer(words[:2]))
    np.random.seed(words[2:4])
    torch.default_generator.manual_seed(_as_integer(words[4:]))


class SeededBatch:
    """Indices of a batch; going through them sets the generators for each sample in turn.

    A data loader sends this to a worker, which loads ``dataset[index]`` for each index: so the
    randomness of a sample, and of what joins the last one to the batch, depends on its place
    alone. With ``num_workers=0`` that happens in the main process, whose generators are set anew
    when the iteration begins.

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
        """Each index, with the generators set for it."""
        for position, index in enumerate(self.indices):
            seed_sample(self.seed, (self.rank, self.number, position))
            yield index


class SeededBatches:
    """A batch sampler whose batches know their number, and which can begin at any of them.

    Beginning further on draws the indices of the batches before, and loads nothing.

    Args:
        batch_sampler: the sampler of the data loader; its attributes are found here as well.
        seed: of the training.
        rank: of the process.
        endless: go on with the next epoch, as iteration-based loops do.

    Attributes:
        first: number of the first batch of the pass that begins next.
        skip: how many batches of that pass have been trained already.
    """

    def __init__(self, batch_sampler: Iterable, seed: int, rank: int, endless: bool) -> None:
        self.batch_sampler = batch_sampler
        self.seed, self.rank, self.endless = seed, rank, endless
        self.first = self.skip = 0

    def __getattr__(self, name: str) -> Any:
        """What the batch sampler has."""
        if name == 'batch_sampler':  # not yet there while a copy is made
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[SeededBatch]:
        """The batches of one pass, or of all that follow."""
        first, skip = self.first, self.skip
        self.skip = 0
        for position, indices in enumerate(self._indices()):
            if position >= skip:
                yield SeededBatch(indices, self.seed, self.rank, first + position)

    def _indices(self) -> Iterator[Iterable[int]]:
        if not self.endless:
            yield from self.batch_sampler
            return
        sampler = getattr(self.batch_sampler, 'sampler', None)
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
    """What an iteration-based loop draws its batches from, in place of MMEngine's own.

    A resumed loop passes over the batches trained already by drawing them, or with ``skip_iter``
    where MMEngine has that. Here the sampler has done so, and there is nothing to load.

    Args:
        dataloader: with an endless :class:`SeededBatches`.
        to_pass: how many draws the loop makes in vain.
    """

    def __init__(self, dataloader: Iterable, to_pass: int) -> None:
        self.dataloader = dataloader
        self.to_pass = to_pass
        self.batches = None

    def __iter__(self) -> 'EndlessIterator':
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The next batch; ``None`` for one that was trained already."""
        if self.to_pass:
            self.to_pass -= 1
            return None
        if self.batches is None:
            self.batches = iter(self.dataloader)
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Nothing is left to pass over."""
        self.to_pass = 0

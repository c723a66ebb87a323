"""Random numbers depend only on the position in the training, which is restored."""

import pickle
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import HOOKS, DefaultScope
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from mmvitattn.training.exact_resume import ExactResumeHook
from mmvitattn.training.seeded_batches import (
    EPOCH,
    ITERATION,
    EndlessIterator,
    SeededBatch,
    SeededBatches,
    seed_process,
    seed_sample,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def draw():
    """A number from each generator."""
    return random.random(), np.random.rand(), torch.rand(()).item()


class Noise(torch.utils.data.Dataset):
    """Ten samples: index and what each generator gives."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return (index, *draw())


def sampler_of(kind, shuffle=True):
    return BatchSampler(kind(Noise(), shuffle=shuffle, seed=5), batch_size=3, drop_last=False)


def join(samples):
    """Collates a batch and adds random numbers of its own."""
    return [*samples, ('joined', *draw())]


def load(workers=0, kind=DefaultSampler, number=None, endless=False, rank=0, first=0, skip=0):
    """Batches of a loader."""
    batches = SeededBatches(sampler_of(kind), seed=1, rank=rank, endless=endless)
    batches.first, batches.skip = first, skip
    loader = DataLoader(Noise(), batch_sampler=batches, num_workers=workers, collate_fn=join)
    return list(islice(loader, number))


def test_streams_differ():
    """For each kind, number and position, and each library."""
    drawn = []
    for kind in (EPOCH, ITERATION):
        for number in (0, 1):
            seed_process(1, kind, number)
            drawn.append(draw())
    for place in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1)):
        seed_sample(1, place)
        drawn.append(draw())
    seed_sample(2, (0, 0, 1))
    drawn.append(draw())
    numbers = [number for draws in drawn for number in draws]
    assert len(set(numbers)) == len(numbers) == 27
    seed_process(1, EPOCH, 1)
    assert draw() == drawn[1]


def test_large_seeds():
    seed_process(2**31 - 1, ITERATION, 10**7)
    seed_sample(2**63, (7, 10**7, 4095))


def test_batches_are_pickled_without_drawing():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    batch = pickle.loads(pickle.dumps(SeededBatch([3, 4], 1, 0, 0)))
    assert draw() == expected
    samples = [Noise()[index] for index in batch]
    assert [index for index, *_ in samples] == [3, 4] and len(batch) == 2
    assert samples[0][1:] != samples[1][1:]
    assert samples == [Noise()[index] for index in batch]


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more workers than cores
@pytest.mark.parametrize('kind', [DefaultSampler, InfiniteSampler])
def test_any_number_of_workers_gives_the_same(kind):
    endless = kind is InfiniteSampler
    alone = load(0, kind, 4, endless)
    assert load(2, kind, 4, endless) == alone
    assert {index for batch in alone for index, *_ in batch[:-1]} == set(range(10))
    other_rank = load(0, kind, 4, endless, rank=1)
    assert other_rank[0][0][0] == alone[0][0][0] and other_rank[0][0][1] != alone[0][0][1]
    assert load(0, kind, 4, endless, first=4)[0][0][1:] != alone[0][0][1:]


@pytest.mark.parametrize('kind', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('skip', [1, 4, 7])
def test_skipping_goes_on_where_it_was(kind, skip):
    """Epochs have four batches."""
    whole = load(0, kind, 10, endless=True)
    assert load(0, kind, 10 - skip, endless=True, skip=skip) == whole[skip:]
    assert len({str(batch) for batch in whole}) == 10


def test_skipping_within_an_epoch():
    whole = load(first=4)
    assert len(whole) == 4
    for skip in range(5):
        assert load(first=4, skip=skip) == whole[skip:]


def test_passes_of_an_endless_sampler_are_shuffled_as_epochs():
    epochs = []
    sampler = sampler_of(DefaultSampler)
    for epoch in range(2):
        sampler.sampler.set_epoch(epoch)
        epochs += list(sampler)
    batches = SeededBatches(sampler_of(DefaultSampler), seed=1, rank=0, endless=True)
    assert [batch.indices for batch in islice(batches, 8)] == epochs
    assert epochs[:4] != epochs[4:]


def test_nothing_to_load_ends():
    assert list(SeededBatches(BatchSampler([], 2, False), seed=1, rank=0, endless=True)) == []


def test_looks_like_the_batch_sampler():
    batches = SeededBatches(sampler_of(DefaultSampler), seed=1, rank=0, endless=True)
    assert len(batches) == 4 and batches.batch_size == 3 and batches.sampler.seed == 5
    assert not hasattr(batches, 'nothing')
    assert pickle.loads(pickle.dumps(SeededBatches([[1]], 1, 0, False))).batch_sampler == [[1]]


@pytest.mark.parametrize('drawing', [True, False])
def test_endless_iterator_serves_both_loops(drawing):
    """MMEngine's loop draws the batches that were trained, or calls `skip_iter`."""
    iterator = EndlessIterator(iter('abc'), to_skip=5 if drawing else 0)
    if drawing:
        assert [next(iterator) for _ in range(5)] == [None] * 5
    else:
        iterator.skip_iter(5)
    assert next(iterator) == 'a' and next(iter(iterator)) == 'b'


class Log(list):
    """Keeps warnings."""

    def warning(self, message):
        self.append(message)


class Run:
    """The part of a runner that the hook uses."""

    def __init__(self, batch_sampler, iteration, epoch=0):
        loader = DataLoader(Noise(), batch_sampler=batch_sampler, collate_fn=list)
        self.train_loop = type('Loop', (), {})()
        self.train_loop.dataloader = loader
        self.train_loop.run_iter = lambda index, batch: index
        self.seed, self.iter, self.epoch, self.logger = 1, iteration, epoch, Log()


def resumed(saved, iteration=6, epoch=1, sampler=None):
    hook, run = ExactResumeHook(), Run(sampler or sampler_of(DefaultSampler), iteration, epoch)
    hook.after_load_checkpoint(run, saved)
    hook.before_train(run)
    hook.before_train_epoch(run)
    return hook, run


def checkpoint_of(run):
    hook, checkpoint = ExactResumeHook(), {}
    hook.before_train(run)
    hook.before_save_checkpoint(run, checkpoint)
    return checkpoint


def test_checkpoint_holds_the_seed_of_the_sampler_and_plain_numbers():
    checkpoint = checkpoint_of(Run(sampler_of(DefaultSampler), 0))
    assert checkpoint == dict(exact_resume=dict(sampler_seed=5, processes=1, batches_per_epoch=4))
    checkpoint['exact_resume']['sampler_seed'] = 77
    hook, run = resumed(checkpoint)
    assert hook.batches.sampler.seed == 77 and not run.logger
    assert (hook.batches.first, hook.batches.skip) == (4, 2)
    assert run.train_loop.run_iter(0, None) == 2  # counted on


def test_samplers_without_a_seed():
    sampler = BatchSampler(RandomSampler(Noise()), 3, False)
    hook, run = resumed(checkpoint_of(Run(sampler, 0)), sampler=sampler)
    assert not run.logger and hook.batches.skip == 2


@pytest.mark.parametrize(
    ('change', 'warning'),
    [
        (dict(processes=2), 'processes was 2 and is 1'),
        (dict(batches_per_epoch=9), 'batches_per_epoch was 9 and is 4'),
        (None, 'the checkpoint was written without this hook'),
    ],
)
def test_warns_where_it_cannot_be_exact(change, warning):
    checkpoint = checkpoint_of(Run(sampler_of(DefaultSampler), 0))
    if change is None:
        checkpoint = {}
    else:
        checkpoint['exact_resume'].update(change)
    _, run = resumed(checkpoint)
    assert len(run.logger) == 1 and warning in run.logger[0]
    assert 'differs from an uninterrupted one' in run.logger[0]


def test_a_place_outside_the_epoch_is_its_start():
    """As MMEngine resumes, where an epoch has another number of batches."""
    hook, run = resumed(dict(exact_resume=None), iteration=6, epoch=2)
    assert hook.batches.skip == 0 and run.train_loop.run_iter(0, None) == 0


def test_iterable_data_is_left_alone():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    run = Run(sampler_of(DefaultSampler), 0)
    run.train_loop.dataloader = DataLoader(Stream(), batch_size=2)
    assert checkpoint_of(run) == {} and 'no batch sampler' in run.logger[0]
    assert [batch.tolist() for batch in run.train_loop.dataloader] == [[0, 1], [2]]


@pytest.mark.parametrize(
    'scope',
    ['mmseg', *(pytest.param(name, marks=pytest.mark.slow) for name in ('mmdet', 'mmpretrain'))],
)
def test_resolves_in_each_toolbox(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(HOOKS.build(dict(type='mmvitattn.ExactResumeHook')), ExactResumeHook)


@pytest.mark.parametrize('path', ['detection', 'segmentation', 'classification', 'custom_hooks'])
def test_configs_have_it(path):
    files = dict(custom_hooks='demo/retinanet_linglo_b0_fpn_shapes.py')
    cfg = Config.fromfile(CONFIGS / files.get(path, f'_base_/{path}_runtime.py'))
    assert cfg.default_hooks.exact_resume.type == 'mmvitattn.ExactResumeHook'
    assert ('custom_hooks' in cfg) == (path in files)

"""The processes that load data: which signals end them, and what is said about their death."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from mmvitattn.errors import UsageError
from mmvitattn.training.data_workers import prepare_workers, worker_deaths_explained


class Signalling(torch.utils.data.Dataset):
    """Samples whose loading sends a signal to the worker."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), self.number)
        return torch.tensor(index)


class Large(Signalling):
    """Samples that cannot be written to the shared memory."""

    def __getitem__(self, index):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return torch.ones(1000)


def load(dataset, collate_fn=None, **options):
    loader = DataLoader(dataset, num_workers=1, collate_fn=collate_fn, **options)
    prepare_workers(loader)
    prepare_workers(loader)  # of a loader that was prepared before
    with worker_deaths_explained():
        return [batch.item() for batch in loader]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_outlive_signals_to_the_job(number):
    assert load(Signalling(number)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    'code',
    [
        'torch.set_num_threads(2); test_workers_outlive_signals_to_the_job(signal.SIGTERM); '
        'test_the_parent_can_end_a_worker()',
        "load(Signalling(signal.SIGTERM), multiprocessing_context='spawn')",
    ],
    ids=['two_threads', 'spawn'],
)
def test_in_a_fresh_process(code, run_code):
    """If PyTorch had two threads from the start, each worker has a second one once it is forked."""
    folder = str(Path(__file__).parent)
    run_code(f'import sys; sys.path.append({folder!r}); from test_data_workers import *; {code}')


def test_start_methods_are_kept(monkeypatch):
    loader = DataLoader(Signalling(0), num_workers=1, multiprocessing_context='spawn')
    prepare_workers(loader)
    assert loader.multiprocessing_context.get_start_method() == 'spawn'
    monkeypatch.setattr('multiprocessing.get_start_method', lambda allow_none: 'spawn')
    loader = DataLoader(Signalling(0), num_workers=1)
    prepare_workers(loader)
    assert loader.multiprocessing_context is None


def test_signals_reach_the_parent_again():
    load(Signalling(0))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_parent_can_end_a_worker():
    loader = DataLoader(Signalling(signal.SIGINT), num_workers=1)
    prepare_workers(loader)
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_killed_worker_is_one_clear_error():
    with pytest.raises(UsageError, match='worker died: DataLoader worker') as info:
        load(Signalling(signal.SIGKILL))
    assert 'train_dataloader.num_workers=2' in str(info.value) and '--resume' in str(info.value)


@pytest.mark.parametrize('collate_fn', [None, lambda batch: batch[0]], ids=['stacked', 'listed'])
def test_lack_of_shared_memory_is_one_clear_error(collate_fn, capfd):
    """Without its own handling, the second of the two waits forever."""
    with pytest.raises(UsageError, match=r'bytes of /dev/shm are free') as info:
        load(Large(0), collate_fn)
    assert '--shm-size' in str(info.value)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match='a bug'), worker_deaths_explained():
        raise RuntimeError('Caught RuntimeError in DataLoader worker process 0. a bug')

"""Trains a tiny model with much randomness, each run in a process of its own, some of them killed.

``python tiny_training.py SETTINGS``, with SETTINGS a JSON list of the runs: arguments of `train`.
One process for all, from which they are forked, imports the libraries once.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn


class Pictures(torch.utils.data.Dataset):
    """Thirteen pictures, augmented with each library's generator."""

    def __len__(self):
        return 13

    def __getitem__(self, index):
        picture = torch.full((3, 4, 4), index / 13)
        picture[0] += np.random.rand()
        picture[1] *= random.random()
        return dict(inputs=picture + torch.randn(3, 4, 4), labels=index % 3)


class Classifier(BaseModel):
    """Draws from each generator in every step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.Linear(32, 3)

    def forward(self, inputs, labels, mode='tensor'):
        scores = self.head(self.layers(inputs))
        if mode != 'loss':
            return scores
        weight = random.random() + np.random.rand()
        return dict(loss=weight * nn.functional.cross_entropy(scores, labels))


class NoisyMetric(BaseMetric):
    """A validation that draws from the generators, too."""

    def process(self, data_batch, data_samples):
        self.results.append(torch.rand(()).item() + np.random.rand() + random.random())

    def compute_metrics(self, results):
        return dict(noise=sum(results))


@HOOKS.register_module()
class KillHook(Hook):
    """Sends a signal to the process, and to its data loading workers, at an iteration."""

    priority = 'LOWEST'

    def __init__(self, iteration, number=signal.SIGKILL):
        self.iteration, self.number = iteration, number

    def before_train(self, runner):
        if self.number != signal.SIGKILL:
            os.setpgid(0, 0)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            if self.number == signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            # as a scheduler: from another process, to all processes of the job
            command = ['kill', f'-{int(self.number)}', '--', f'-{os.getpid()}']
            subprocess.run(command, start_new_session=True, check=True)


class SmallDiskHook(Hook):
    """Files cannot become larger than some bytes from an iteration on."""

    priority = 'LOWEST'

    def __init__(self, iteration, size):
        self.iteration, self.size = iteration, size

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def join(samples):
    """A batch with a brightness of its own."""
    batch = torch.utils.data.default_collate(samples)
    batch['inputs'] *= np.random.rand() + random.random()
    return batch


def loader(workers, sampler):
    return dict(
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        dataset=Pictures(),
        sampler=dict(type=sampler),
        collate_fn=join,
    )


def train(
    work_dir,
    loop,
    save,
    workers=0,
    sampler='DefaultSampler',
    kill_at=None,
    number=signal.SIGKILL,
    small_disk=None,
    **options,
):
    """One run; its settings may also contain ``status``, the exit status that is expected.

    Args:
        work_dir: folder of the run.
        loop: settings of the training loop.
        save: settings of the checkpoint hook.
        workers: processes that load data.
        sampler: of the training data.
        kill_at: iteration after which it is killed, or gets the signal of this number.
        number: of the signal.
        small_disk: iteration and number of bytes, see ``SmallDiskHook``.
        options: ``exact=False`` leaves the hook out; others are the runner's.
    """
    default_hooks = dict(checkpoint=dict(type='mmvitattn.SafeCheckpointHook', **save))
    if options.pop('exact', True):
        default_hooks['exact_resume'] = dict(type='mmvitattn.ExactResumeHook')
    hooks = [dict(type='EMAHook', momentum=0.1)]
    if kill_at:
        hooks.append(KillHook(kill_at, number))
    if small_disk:
        hooks.append(SmallDiskHook(*small_disk))
    Runner(
        model=Classifier(),
        work_dir=work_dir,
        train_dataloader=loader(workers, sampler),
        train_cfg=loop,
        val_dataloader=loader(0, 'DefaultSampler'),
        val_cfg=dict(),
        val_evaluator=[NoisyMetric()],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
            dict(type='CosineAnnealingLR', by_epoch='max_epochs' in loop, T_max=20),
        ],
        default_hooks=default_hooks,
        custom_hooks=hooks,
        experiment_name=os.path.basename(work_dir),
        **dict(dict(randomness=dict(seed=3), log_level='WARNING'), **options),
    ).train()


def main():
    torch.set_num_threads(1)
    for settings in json.loads(sys.argv[1]):
        expected = settings.pop('status', -signal.SIGKILL if settings.get('kill_at') else 0)
        child = os.fork()
        if not child:
            try:
                train(**settings)
            except SystemExit as end:
                os._exit(end.code)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != expected:
            sys.exit(f'{settings}: ended with status {status}, not {expected}')


if __name__ == '__main__':
    main()

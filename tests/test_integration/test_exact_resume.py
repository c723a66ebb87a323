"""A run that is killed and resumed ends bit for bit as one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvitattn.checkpoint import load_checkpoint

EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)  # of 7 iterations
ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=19, val_interval=4)
BY_EPOCH, BY_ITERATION = dict(interval=1), dict(interval=4, by_epoch=False)
CASES = {
    # loop, checkpoints, sampler, workers, workers when resumed, killed at
    'epochs': (EPOCHS, BY_EPOCH, 'DefaultSampler', 2, 2, 10),
    'within an epoch': (EPOCHS, BY_ITERATION, 'DefaultSampler', 0, 2, 13),
    'end of an epoch': (EPOCHS, dict(interval=7, by_epoch=False), 'DefaultSampler', 1, 0, 8),
    'infinite sampler': (ITERATIONS, BY_ITERATION, 'InfiniteSampler', 2, 1, 10),
    'iterations over epochs': (ITERATIONS, BY_ITERATION, 'DefaultSampler', 0, 1, 17),
}
FAST = ('within an epoch',)


def run_all(settings):
    """Runs them in turn; the log of all."""
    script = Path(__file__).with_name('tiny_training.py')
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(settings)],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    return log


def last_checkpoint(work_dir):
    return load_checkpoint((work_dir / 'last_checkpoint').read_text())


def tensors(tree, name=''):
    """Every tensor in a tree, by its place."""
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = {}
    for key, part in parts:
        if isinstance(part, dict | list | tuple | torch.Tensor):
            found |= tensors(part, f'{name}.{key}')
    return found


def differing(first, second):
    """Names of tensors that are not the same in two checkpoints."""
    names = ('state_dict', 'ema_state_dict', 'optimizer')
    first, second = (tensors({name: each[name] for name in names}) for each in (first, second))
    assert first.keys() == second.keys() and len(first) > 30
    return [name for name in first if not torch.equal(first[name], second[name])]


def settings_of(case, tmp_path, **options):
    loop, save, sampler, workers, resumed_workers, kill_at = CASES[case]
    common = dict(loop=loop, save=save, sampler=sampler, **options)
    broken = dict(common, work_dir=str(tmp_path / 'broken'))
    return [
        dict(common, work_dir=str(tmp_path / 'whole'), workers=workers),
        dict(broken, workers=workers, kill_at=kill_at),
        dict(broken, workers=resumed_workers, resume=True),
    ]


@pytest.mark.parametrize(
    'case', [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in CASES]
)
def test_killed_and_resumed_is_as_uninterrupted(case, tmp_path):
    log = run_all(settings_of(case, tmp_path))
    whole, resumed = last_checkpoint(tmp_path / 'whole'), last_checkpoint(tmp_path / 'broken')
    assert differing(whole, resumed) == []
    losses = [c['message_hub']['log_scalars']['train/loss'].data[0] for c in (whole, resumed)]
    assert losses[0].tolist() == losses[1].tolist() and len(set(losses[0])) > 18
    assert 'ExactResumeHook' not in log  # no warning


SIGNALS = {
    # case, signal, iteration that the checkpoint contains
    'within an epoch': (signal.SIGTERM, 14),
    'epochs': (signal.SIGINT, 11),
    'infinite sampler': (signal.SIGUSR1, 11),
    'end of an epoch': (signal.SIGTERM, 9),
}


@pytest.mark.parametrize(
    'case', [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in SIGNALS]
)
def test_a_signal_saves_at_the_next_iteration(case, tmp_path):
    number, iteration = SIGNALS[case]
    whole, broken, resumed = settings_of(case, tmp_path, log_level='INFO')
    log = run_all([whole, dict(broken, number=number, status=75)])
    assert f'{number.name}: the training is saved and ends with status 75' in log
    saved = last_checkpoint(tmp_path / 'broken')
    assert (tmp_path / 'broken' / 'interrupted.pth').is_file()
    assert saved['meta']['iter'] == iteration == saved['optimizer']['state'][0]['step']
    run_all([resumed])
    assert differing(*(last_checkpoint(tmp_path / name) for name in ('whole', 'broken'))) == []
    assert not (tmp_path / 'broken' / 'interrupted.pth').exists()


@pytest.mark.slow
def test_a_failed_write_leaves_nothing_and_keeps_the_older(tmp_path):
    whole, _, resumed = settings_of('epochs', tmp_path)
    for settings in (whole, resumed):
        settings.update(save=dict(interval=1, max_keep_ckpts=1), workers=0)
    log = run_all([whole, dict(resumed, resume=False, small_disk=(10, 5000), status=1)])
    path = str(tmp_path / 'broken' / 'epoch_2.pth')
    assert re.search(
        rf'UsageError: {path} cannot be written: File too large. It needs \d\d,\d{{3}} bytes, and '
        r'[\d,]+ are free there',
        log,
    )
    left = {p.name for p in (tmp_path / 'broken').iterdir() if p.is_file() and p.suffix != '.py'}
    assert left == {'epoch_1.pth', 'last_checkpoint'}
    run_all([resumed])
    assert differing(*(last_checkpoint(tmp_path / name) for name in ('whole', 'broken'))) == []
    assert [p.name for p in (tmp_path / 'broken').glob('*.pth')] == ['epoch_3.pth']


@pytest.mark.slow
def test_without_the_hook_it_differs(tmp_path):
    run_all(settings_of('within an epoch', tmp_path, exact=False))
    assert differing(last_checkpoint(tmp_path / 'whole'), last_checkpoint(tmp_path / 'broken'))


@pytest.mark.slow
def test_a_seed_that_mmengine_drew_is_kept(tmp_path):
    """Nor does it matter that the checkpoint is copied elsewhere."""
    whole, *_ = settings_of('within an epoch', tmp_path, randomness=dict(seed=None))
    resumed = dict(whole, work_dir=str(tmp_path / 'resumed'), resume=True)
    run_all([whole, dict(resumed, load_from=str(tmp_path / 'whole' / 'iter_12.pth'))])
    checkpoints = [last_checkpoint(tmp_path / name) for name in ('whole', 'resumed')]
    assert differing(*checkpoints) == []
    assert checkpoints[0]['meta']['seed'] == checkpoints[1]['meta']['seed']


CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['mmvitattn', 'tiny_training'])
custom_hooks = [dict(type='EMAHook', momentum=0.1), *{hooks}]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=3, save_begin=0))
train_dataloader = dict(batch_size={batch_size})
train_cfg = {loop}
"""
TOOLS = {
    'detector': ('retinanet_linglo_b0_fpn_shapes', 'coco', dict(max_epochs=2, val_interval=2), 1),
    'two processes': (
        *('retinanet_linglo_b0_fpn_shapes', 'coco'),
        *(dict(max_epochs=2, val_interval=2), 2),
    ),
    'segmenter': (
        *('semfpn_linglo_b0_shapes', 'ade/ADEChallengeData2016'),
        *(dict(max_iters=8, val_interval=8), 1),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', TOOLS)
def test_tools_resume_exactly(kind, small_shapes, run_tool, tmp_path, root):
    name, data, loop, processes = TOOLS[kind]
    env = {'PYTHONPATH': str(Path(__file__).parent), 'OMP_NUM_THREADS': '1'}

    def run(work_dir, *arguments, kill_at=None):
        config = tmp_path / f'{work_dir}.py'
        hooks = [dict(type='KillHook', iteration=kill_at)] if kill_at else []
        base = str(root / f'configs/demo/{name}.py')
        batch_size = 8 // processes  # four iterations are an epoch
        config.write_text(CONFIG.format(base=base, hooks=hooks, loop=loop, batch_size=batch_size))
        arguments = [config, '--work-dir', tmp_path / work_dir, *arguments]
        arguments += ['--data-root', small_shapes / data]
        launcher = ()
        if processes > 1:
            launcher = ('-m', 'torch.distributed.run', '--standalone')
            launcher += (f'--nproc_per_node={processes}',)
            arguments += ['--launcher', 'pytorch']
        status = None if kill_at else 0
        return run_tool('train', *arguments, env=env, launcher=launcher, status=status)

    run('whole')
    killed = run('broken', kill_at=7)
    assert killed.returncode == -9 or (processes > 1 and 'SIGKILL' in killed.stderr)
    assert (tmp_path / 'broken/last_checkpoint').read_text().endswith('iter_6.pth')
    run('broken', '--resume')
    assert differing(*(last_checkpoint(tmp_path / name) for name in ('whole', 'broken'))) == []

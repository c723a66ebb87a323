"""The shell launchers pass on what they are given, each word as it is."""

import os
import subprocess

import pytest

STUB = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'


@pytest.fixture
def launch(root, tmp_path):
    for name in ('srun', 'python'):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **env):
        env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **env}
        command = [str(root / 'tools' / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    return run


@pytest.mark.parametrize(
    ('script', 'arguments', 'tool'),
    [
        ('dist_train.sh', ['c.py', '4'], ['train.py', 'c.py']),
        ('dist_test.sh', ['c.py', 'w.pth', '4'], ['test.py', 'c.py', 'w.pth']),
    ],
)
def test_torchrun(script, arguments, tool, launch):
    words = launch(script, *arguments, '--cfg-options', 'a=[1, 2]', NNODES='2').stdout.splitlines()
    assert words[:2] == ['-m', 'torch.distributed.run']
    assert '--nproc_per_node=4' in words and '--nnodes=2' in words
    assert ('--max-restarts=0' in words) == (script == 'dist_train.sh')
    start = next(i for i, word in enumerate(words) if word.endswith(tool[0]))
    rest = [*tool[1:], '--launcher', 'pytorch', '--cfg-options', 'a=[1, 2]']
    assert words[start + 1 :] == rest


@pytest.mark.parametrize(
    ('script', 'arguments', 'tool'),
    [
        ('slurm_train.sh', ['gpu', 'job', 'c.py'], ['train.py', 'c.py']),
        ('slurm_test.sh', ['gpu', 'job', 'c.py', 'w.pth'], ['test.py', 'c.py', 'w.pth']),
    ],
)
def test_slurm(script, arguments, tool, launch):
    done = launch(script, *arguments, '--amp', GPUS='16', SRUN_ARGS='--time=1 --mem=2G')
    words = done.stdout.splitlines()
    assert {'--partition=gpu', '--job-name=job', '--ntasks=16', '--time=1', '--mem=2G'} <= set(
        words
    )
    start = next(i for i, word in enumerate(words) if word.endswith(tool[0]))
    assert words[start + 1 :] == [*tool[1:], '--launcher', 'slurm', '--amp']


def test_restarts_meet_at_a_new_store(launch):
    words = launch('dist_train.sh', 'c.py', '4', MAX_RESTARTS='3', PORT='29501').stdout.splitlines()
    assert {'--max-restarts=3', '--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:29501'} <= {
        *words
    }
    assert not any(word.startswith(('--master', '--node_rank')) for word in words)


def test_slurm_queues_an_interrupted_training_again(launch, tmp_path):
    """Exit status 75 is that of a training that a signal ended after it was saved."""
    program = f'echo "$@" >> {tmp_path}/calls; n=$(wc -l < {tmp_path}/calls)\n'
    (tmp_path / 'srun').write_text(f'#!/usr/bin/env bash\n{program}[ $n -lt 3 ] && exit 75; exit 4')
    done = launch('slurm_train.sh', 'gpu', 'job', 'c.py', SIGNAL_SECONDS='60', SLURM_JOB_ID='')
    first, *others = (tmp_path / 'calls').read_text().splitlines()
    assert done.returncode == 4 and '--signal=USR1@60' in first and '--resume' not in first
    assert len(others) == 2 and all(line.split()[-1] == '--resume' for line in others)
    (tmp_path / 'calls').unlink()
    (tmp_path / 'scontrol').write_text(STUB)
    (tmp_path / 'scontrol').chmod(0o755)
    done = launch('slurm_train.sh', 'gpu', 'job', 'c.py', SLURM_JOB_ID='17')
    assert done.stdout.splitlines() == ['requeue', '17'] and done.returncode == 0


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_missing_arguments_show_the_usage(script, launch):
    done = launch(script, 'c.py')
    assert done.returncode == 2 and f'tools/{script}' in done.stderr

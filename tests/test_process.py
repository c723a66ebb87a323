"""Settings of the tools' own process."""

import os
import subprocess
import sys

import pytest

from mmvitattn import process

START = """
import os, resource, sys
sys.argv = [sys.argv[1]]
import mmvitattn, torch
from mmvitattn import process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64, 1 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(process.describe(), min(faults() for _ in range(6)), sep='\\n')
"""
USER = [*process._OPENMP, 'MALLOC_ARENA_MAX', 'GLIBC_TUNABLES', 'LD_PRELOAD', process.ENV_NAME]


@pytest.fixture
def tool(monkeypatch, root):
    """A tool before it imports torch, without settings of the user; returns mallopt's calls."""
    if os.path.exists('/dev/nvidiactl'):
        pytest.skip('nothing is set where there is an NVIDIA GPU')
    for name in [n for n in os.environ if n in USER or n.startswith('MALLOC_')]:
        monkeypatch.delenv(name)
    calls = []
    monkeypatch.setenv('OMP_WAIT_POLICY', '')  # restored after the test
    monkeypatch.delenv('OMP_WAIT_POLICY')
    monkeypatch.setattr(sys, 'argv', [str(root / 'tools/train.py')])
    monkeypatch.setattr(process, 'applied', [])
    monkeypatch.setattr(process, 'mallopt', lambda values: calls.append(values) or True)
    monkeypatch.delitem(sys.modules, 'torch')
    return calls


@pytest.mark.parametrize(
    ('program', 'words', 'expected'),
    [
        ('tools/train.py', [], True),
        ('tools/analysis_tools/benchmark.py', [], True),
        ('/somewhere/bin/mmvitattn', [], True),
        ('-m', ['python', '-m', 'mmvitattn', 'train'], True),
        ('-m', ['python', '-m', 'pytest'], False),
        ('tests/test_process.py', [], False),
        ('-c', [], False),
        ('', [], False),
    ],
)
def test_only_tools_are_set(tool, monkeypatch, root, program, words, expected):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, 'argv', [program])
    monkeypatch.setattr(sys, 'orig_argv', words)
    process.prepare_tool()
    assert (os.environ.get('OMP_WAIT_POLICY') == 'passive') is expected
    assert tool == [process.KEEP_FREED] * expected


@pytest.mark.parametrize('name', USER)
def test_what_the_user_has_set_stays(tool, monkeypatch, name):
    monkeypatch.setenv(name, 'off')
    process.prepare_tool()
    given = {'OMP_WAIT_POLICY': 'off', **dict.fromkeys([*process._OPENMP[1:], process.ENV_NAME])}
    assert os.environ.get('OMP_WAIT_POLICY') == given.get(name, 'passive')
    assert bool(tool) is (name in process._OPENMP)


def test_after_torch_openmp_cannot_be_set(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', object())
    process.prepare_tool()
    assert 'OMP_WAIT_POLICY' not in os.environ and len(process.applied) == 1


def test_wrong_value(tool, monkeypatch):
    monkeypatch.setenv(process.ENV_NAME, 'maybe')
    with pytest.raises(
        ValueError, match="MMVITATTN_PROCESS_SETTINGS='maybe': choose 'on' or 'off'"
    ):
        process.prepare_tool()


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc and its OpenMP')
@pytest.mark.parametrize('mode', ['on', 'off'])
def test_openmp_and_the_allocator_obey(tool, monkeypatch, root, mode):
    """OpenMP's threads do not spin; large buffers fault their pages in only once."""
    env = {**os.environ, process.ENV_NAME: mode, 'OMP_DISPLAY_ENV': 'verbose'}
    command = [sys.executable, '-c', START, str(root / 'tools/train.py')]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    line, faults = done.stdout.splitlines()
    settings = 'OMP_WAIT_POLICY=passive, the allocator keeps freed memory'
    assert line.startswith(f'Process settings: {settings if mode == "on" else "none"} ')
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) is (mode == 'on')
    assert (int(faults) < 100) is (mode == 'on')

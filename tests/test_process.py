"""Settings of the tools' own process."""

import os
import re
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

# A freed buffer may lack the few bytes of the alignment until its neighbours are freed as well.
print(process.describe(), min(faults() for _ in range(40)), sep='\\n')
"""
OTHERS_RUN = process.others_run
USER = [*process._OPENMP, 'MALLOC_ARENA_MAX', 'GLIBC_TUNABLES', 'LD_PRELOAD', process.ENV_NAME]


@pytest.fixture
def tool(monkeypatch, root):
    """A tool before it imports torch, without settings of the user; returns mallopt's calls."""
    if os.path.exists('/dev/nvidiactl'):
        pytest.skip('nothing is set where there is an NVIDIA GPU')
    for name in [n for n in os.environ if n in USER or n.startswith('MALLOC_')]:
        monkeypatch.delenv(name)
    calls = []
    monkeypatch.setenv('GOMP_SPINCOUNT', '')  # restored after the test
    monkeypatch.delenv('GOMP_SPINCOUNT')
    monkeypatch.setattr(process, 'others_run', lambda: False)
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
    assert (os.environ.get('GOMP_SPINCOUNT') == process.SHORT_SPIN) is expected
    assert tool == [process.KEEP_FREED] * expected


@pytest.mark.parametrize('name', USER)
def test_what_the_user_has_set_stays(tool, monkeypatch, name):
    monkeypatch.setenv(name, 'off')
    process.prepare_tool()
    given = {**dict.fromkeys([*USER[:3], process.ENV_NAME]), 'GOMP_SPINCOUNT': 'off'}
    assert os.environ.get('GOMP_SPINCOUNT') == given.get(name, process.SHORT_SPIN)
    assert bool(tool) is (name in process._OPENMP)


def test_after_torch_openmp_cannot_be_set(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', object())
    process.prepare_tool()
    assert 'GOMP_SPINCOUNT' not in os.environ and len(process.applied) == 1


def test_wrong_value(tool, monkeypatch):
    monkeypatch.setenv(process.ENV_NAME, 'maybe')
    with pytest.raises(
        ValueError, match="MMVITATTN_PROCESS_SETTINGS='maybe': choose 'on' or 'off'"
    ):
        process.prepare_tool()


@pytest.mark.parametrize(('running', 'spins'), [('1', process.SHORT_SPIN), ('2', '0'), ('9', '0')])
def test_threads_sleep_at_once_beside_others(tool, monkeypatch, tmp_path, running, spins):
    (tmp_path / 'loadavg').write_text(f'0.52 0.58 0.59 {running}/1234 56789\n')
    monkeypatch.setattr(process, 'LOADAVG', tmp_path / 'loadavg')
    monkeypatch.setattr(process, 'others_run', OTHERS_RUN)
    process.prepare_tool()
    assert os.environ['GOMP_SPINCOUNT'] == spins


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc and its OpenMP')
@pytest.mark.parametrize('mode', ['on', 'off'])
def test_openmp_and_the_allocator_obey(tool, monkeypatch, root, mode):
    """OpenMP's threads do not spin; large buffers fault their pages in only once."""
    env = {**os.environ, process.ENV_NAME: mode, 'OMP_DISPLAY_ENV': 'verbose'}
    command = [sys.executable, '-c', START, str(root / 'tools/train.py')]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    line, faults = done.stdout.splitlines()
    assert line.endswith('none (MMVITATTN_PROCESS_SETTINGS=off turns them off)') is (mode == 'off')
    spins = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr).group(1)
    assert (f'GOMP_SPINCOUNT={spins}, the allocator keeps' in line) is (mode == 'on')
    assert (int(faults) < 100) is (mode == 'on')

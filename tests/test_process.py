"""Settings of the tools' own process."""

import os
import subprocess
import sys
import threading
import time

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
SPIN = """
import time, torch
from mmvitattn import process

def spinning():
    torch.ones(1 << 20).mul_(2)
    before = time.process_time()
    time.sleep(0.1)
    return time.process_time() - before

torch.set_num_threads(2)
team = process.IdleTeam(process.openmp_libraries())
times = [max(spinning() for _ in range(5))]
team.start()
time.sleep(0.2)
times.append(min(spinning() for _ in range(5)))
team.leave.set()
team.join()
times.append(max(spinning() for _ in range(5)))
print(*times)
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
    monkeypatch.setattr(process, '_watch_cores', lambda: calls.append('watch'))
    monkeypatch.setattr(sys, 'argv', [str(root / 'tools/train.py')])
    monkeypatch.setattr(process, 'applied', [])
    monkeypatch.setattr(process, 'mallopt', lambda values: calls.append(values) or True)
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
    assert tool == ['watch', process.KEEP_FREED] * expected
    assert len(process.applied) == 2 * expected


@pytest.mark.parametrize('name', USER)
def test_what_the_user_has_set_stays(tool, monkeypatch, name):
    monkeypatch.setenv(name, 'off')
    process.prepare_tool()
    assert ('watch' in tool) is (name not in [*process._OPENMP, process.ENV_NAME])
    assert (process.KEEP_FREED in tool) is (name in process._OPENMP)


def test_wrong_value(tool, monkeypatch):
    monkeypatch.setenv(process.ENV_NAME, 'maybe')
    with pytest.raises(
        ValueError, match="MMVITATTN_PROCESS_SETTINGS='maybe': choose 'on' or 'off'"
    ):
        process.prepare_tool()


@pytest.mark.skipif(sys.platform != 'linux', reason='statistics of its scheduler')
def test_a_team_is_kept_while_threads_wait_for_cores(monkeypatch):
    """One of two threads waits in the second to fourth period; OpenMP is loaded in the third."""
    quiet, start = [{'1': 5.0, '2': 0.0}] * 2, [{'1': 5.0, '2': 0.5}, {'1': 5.0, '2': 0.9}]
    rest = [{'1': 5.0, '2': 1.3, '3': 9.0}, {'1': 5.01, '2': 1.31, '3': 9.0}]  # a new thread
    waits, libraries = iter(quiet + start + rest), iter([set(), {'libgomp.so.1'}])
    clock, teams, states = iter(range(9)), [], []

    class Team:
        def __init__(self, libraries):
            assert libraries == {'libgomp.so.1'}
            self.leave = threading.Event()
            teams.append(self)

        def start(self):
            pass

    def sleep(period):
        states.append([not team.leave.is_set() for team in teams])

    monkeypatch.setattr(process, 'IdleTeam', Team)
    monkeypatch.setattr(process, 'core_waits', lambda: next(waits))
    monkeypatch.setattr(process, 'openmp_libraries', lambda: next(libraries))
    monkeypatch.setattr(process.time, 'monotonic', lambda: float(next(clock)))
    monkeypatch.setattr(process.time, 'sleep', sleep)
    with pytest.raises(StopIteration):  # at the end of what it is shown
        process._watch_cores()
    assert states == [[], [], [], [True], [True], [False]]


@pytest.mark.skipif(sys.platform != 'linux', reason='statistics of its scheduler')
def test_waits_of_threads_grow_beside_others():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        thread, before = str(threading.get_native_id()), process.core_waits()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        waited = process.core_waits()[thread] - before[thread]
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)
    assert waited > process.CROWDED


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc and its OpenMP')
def test_openmp_threads_sleep_with_an_idle_team():
    """After a parallel region they take CPU time, but not beside a second team."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip('with one core OpenMP threads never spin')
    env = {k: v for k, v in os.environ.items() if k not in process._OPENMP}
    done = subprocess.run(
        [sys.executable, '-c', SPIN], capture_output=True, text=True, env=env, check=True
    )
    before, beside, after = map(float, done.stdout.split())
    assert beside < 0.3 * min(before, after), done.stdout


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc')
@pytest.mark.parametrize('mode', ['on', 'off'])
def test_the_allocator_obeys(tool, monkeypatch, root, mode):
    """Large buffers fault their pages in only once."""
    env = {**os.environ, process.ENV_NAME: mode}
    command = [sys.executable, '-c', START, str(root / 'tools/train.py')]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    line, faults = done.stdout.splitlines()
    assert line.endswith('none (MMVITATTN_PROCESS_SETTINGS=off turns them off)') is (mode == 'off')
    assert ('sleep while others need the cores, the allocator keeps' in line) is (mode == 'on')
    assert (int(faults) < 100) is (mode == 'on')

"""One run at a time writes to a folder, and a signal or a full disk does not spoil it."""

import os
import signal
import time
from contextlib import suppress

import pytest

from mmvitattn.errors import UsageError
from mmvitattn.training.run_folder import locked, restarted
from mmvitattn.training.signals import StopSignals


@pytest.fixture
def other_process():
    """Runs a function in a process of its own until it waits, which is killed later."""
    children = []

    def start(function):
        ready, waits = os.pipe()
        child = os.fork()
        if not child:
            try:
                function(lambda: (os.write(waits, b'1'), signal.pause()))
            finally:
                os._exit(1)
        os.close(waits)
        children.append(child)
        assert os.read(ready, 1) == b'1'
        return child

    yield start
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def hold(folder, launcher='none'):
    def run(wait):
        with locked(folder, launcher):
            if os.fork():
                wait()
            time.sleep(5)  # a data loading worker, which outlives the process

    return run


def test_a_second_run_is_refused_while_the_first_lives(other_process, tmp_path):
    first = other_process(hold(tmp_path / 'run'))
    with pytest.raises(UsageError, match=rf'run is the folder .* \(process {first} on'):
        locked(tmp_path / 'run', 'none').__enter__()
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    with locked(tmp_path / 'run', 'none'):
        pass


def test_the_first_process_locks_for_all(other_process, tmp_path, monkeypatch):
    other_process(hold(tmp_path, 'pytorch'))
    monkeypatch.setenv('RANK', '1')
    with locked(tmp_path, 'pytorch'):
        pass
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UsageError, match='training that is running'):
        locked(tmp_path, 'pytorch').__enter__()


def test_a_restart_by_torchrun_resumes_only_its_own_run(tmp_path, monkeypatch):
    with locked(tmp_path, 'pytorch'):
        pass
    (tmp_path / 'last_checkpoint').touch()
    assert not restarted(tmp_path, 'pytorch')
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert restarted(tmp_path, 'pytorch') and not restarted(tmp_path, 'none')
    (tmp_path / '.lock').write_text('process 1 on host\nstarted by 0\n')
    assert not restarted(tmp_path, 'pytorch')  # refused the first time: another run's folder


def test_ctrl_c_once_is_noted_and_twice_ends_at_once(other_process):
    def run(wait):
        signals = StopSignals()
        assert signals.agreed() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.agreed() == signal.SIGINT
        wait()

    child = other_process(run)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_the_former_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    assert signal.getsignal(signal.SIGTERM) != before
    signals.restore()
    assert signal.getsignal(signal.SIGTERM) == before

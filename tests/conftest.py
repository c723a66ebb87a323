import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmvitattn.__main__ import find_tools

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root():
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def own_default_scope():
    """A test that sets MMEngine's default scope, by a Runner or a config, does so for itself."""
    yield
    scopes = sys.modules.get('mmengine.registry')
    if scopes is not None:
        scopes.DefaultScope._instance_dict.clear()


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Runs a tool of the repository, from its root; returns exit status, stdout and stderr.

    By default its ``main`` is called in this process, which is fast. With ``process`` it is a
    process of its own, as for a user, with ``env`` added to its environment and the words of
    ``launcher``, e.g. ``-m torch.distributed.run``, before the tool; both imply it. ``status`` is
    the exit status that is expected, ``None`` for any.
    """

    def run(tool, *arguments, status=0, process=False, env=None, launcher=()):
        path, words = str(find_tools()[Path(tool).stem]), [str(word) for word in arguments]
        if process or env or launcher:
            command = [sys.executable, *launcher, path, *words]
            env = {**os.environ, **(env or {})}
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
        else:
            monkeypatch.chdir(ROOT)
            monkeypatch.setattr(sys, 'argv', [path, *words])
            capsys.readouterr()
            code = call_main(path)
            done = subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())
        assert status in (done.returncode, None), f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
        return done

    yield run
    logging.disable(logging.NOTSET)  # the tools silence the toolboxes' notes


@pytest.fixture(scope='session')
def run_code():
    """Runs Python code in a process of its own; returns what it prints."""

    def run(code):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def call_main(path):
    """Exit status of a script's ``main``."""
    try:
        runpy.run_path(path, run_name='tool_in_test')['main']()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture(scope='session')
def real_data():
    """Folder with a few real COCO and ADE20K pictures in the official layouts."""
    folder = Path(os.environ.get('MMVITATTN_TEST_DATA', ROOT.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip('no real pictures here; MMVITATTN_TEST_DATA names their folder')
    return folder


@pytest.fixture(scope='session')
def small_shapes(tmp_path_factory):
    """The embedded data set with 32 training and 8 validation pictures."""
    from mmvitattn.datasets.shapes import write_shapes

    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=32, num_val=8)

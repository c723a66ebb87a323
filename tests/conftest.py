import os
import subprocess
import sys
from pathlib import Path

import pytest

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
def run_tool(tmp_path):
    """Runs a tool of the repository in a process of its own; returns it when it has ended."""

    def run(tool, *arguments, env=None, check=True, launcher=()):
        command = [sys.executable, *launcher, str(ROOT / tool), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(env or {})}
        )
        if check:
            assert done.returncode == 0, f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
        return done

    return run


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

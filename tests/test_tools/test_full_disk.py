"""A full disk: a clear error, nothing half written, and a run that continues once there is room."""

import os
import subprocess

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 8 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_a_full_disk(small_disk, tiny_config, small_shapes, run_tool):
    config, run = tiny_config('classifier'), small_disk / 'run'
    options = (config, '--work-dir', run, '--data-root', small_shapes / 'imagenet')
    options += ('--cfg-options', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0')
    options += ('train_dataloader.persistent_workers=False',)
    options += ('val_dataloader.persistent_workers=False', 'train_cfg.max_epochs={}')

    def train(epochs, *others, status=0):
        words = [str(word).format(epochs) for word in options]
        return run_tool('train', *words, *others, status=status, process=True).stderr

    train(1)
    with (small_disk / 'other').open('wb', buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    files = {path: path.read_bytes() for path in run.glob('*.pth')}
    errors = train(2, '--resume', status=2)
    assert 'logs cannot be written: [Errno 28] No space left on device' in errors
    assert 'epoch_2.pth cannot be written: No space left on device. It needs' in errors
    assert 'Traceback' not in errors
    assert {path: path.read_bytes() for path in run.glob('*.pth')} == files
    assert not list(run.glob('.*.tmp'))
    (small_disk / 'other').unlink()
    train(2, '--resume')
    assert (run / 'epoch_2.pth').is_file()

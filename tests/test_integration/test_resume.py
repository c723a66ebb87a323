"""A run that is killed goes on from its last checkpoint."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


def test_killed_run_resumes(small_shapes, run_tool, tmp_path, root):
    arguments = ['configs/demo/retinanet_linglo_b0_fpn_shapes.py', '--work-dir', str(tmp_path)]
    arguments += ['--data-root', str(small_shapes / 'coco')]
    command = [sys.executable, str(root / 'tools/train.py'), *arguments]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while not (tmp_path / 'epoch_2.pth').exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0].decode()[-4000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'epoch_10.pth').exists()

    refused = run_tool('train', *arguments, status=2, process=True)
    assert 'already holds the checkpoints of a run' in refused.stderr

    last = (tmp_path / 'last_checkpoint').read_text().strip()
    epoch = int(last.rsplit('_', 1)[1].removesuffix('.pth'))
    done = run_tool(
        'train',
        *arguments,
        '--resume',
        '--cfg-options',
        f'train_cfg.max_epochs={epoch + 1}',
        process=True,
    )
    log = done.stdout + done.stderr
    assert f'resumed epoch: {epoch}' in log
    assert f'Epoch(train) [{epoch + 1}]' in log.replace('  ', ' ')
    assert 'Epoch(train) [1]' not in log.replace('  ', ' ')
    assert (tmp_path / f'epoch_{epoch + 1}.pth').exists()

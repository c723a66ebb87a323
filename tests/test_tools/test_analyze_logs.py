import json

import cv2
import numpy as np
import pytest

from mmvitattn.engine.errors import UsageError
from mmvitattn.engine.run_logs import read_run

TOOL = 'analysis_tools/analyze_logs.py'


@pytest.fixture
def write_start(tmp_path):
    """Writes what one start of a run by epochs logs, of 7 iterations each, every 3 of them."""

    def write(start, epochs, loss, run='run', metric='coco/bbox_mAP', per_epoch=7):
        entries = []
        for epoch in epochs:
            for inner in (3, 6):
                step = (epoch - 1) * per_epoch + inner
                entries.append(
                    dict(lr=0.1, loss=loss + 1 / step, time=0.5, memory=100 + step, epoch=epoch)
                    | dict(iter=step, step=step)
                )
            entries.append(
                {metric: epoch / 10, 'coco/bbox_mAP_l': -1.0, 'time': 9.0, 'step': epoch}
            )
        path = tmp_path / run / start / 'vis_data/scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(map(json.dumps, entries)) + '\n')
        return path

    return write


def test_restarts_are_joined(write_start, tmp_path):
    """A restart from epoch 2 replaces what the first start logged behind it."""
    write_start('20260101_000000', (1, 2, 3), loss=5)
    write_start('20260102_000000', (3, 4), loss=2)
    log = read_run(tmp_path / 'run')
    assert log.name == 'run' and log.iterations_per_epoch == 7
    assert log.curves['loss'].iterations == [3, 6, 10, 13, 17, 20, 24, 27]
    assert [round(v) for v in log.curves['loss'].values] == [5, 5, 5, 5, 2, 2, 2, 2]
    assert log.curves['coco/bbox_mAP'] == ([7, 14, 21, 28], [0.1, 0.2, 0.3, 0.4])
    assert log.positions('coco/bbox_mAP', by_epoch=True) == [1, 2, 3, 4]
    assert log.positions('loss', by_epoch=False)[:2] == [3, 6]
    assert log.metrics == {'coco/bbox_mAP', 'coco/bbox_mAP_l'}
    assert set(log.curves['time'].values) == {0.5}  # training's


def test_a_run_by_iterations(tmp_path):
    entries = [dict(loss=1.0, lr=1e-3, iter=i, step=i) for i in (50, 100)]
    entries += [dict(mIoU=40.0, aAcc=70.0, time=1.0, step=100)]
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(map(json.dumps, entries)))
    log = read_run(path)
    assert log.iterations_per_epoch is None
    assert log.curves['mIoU'] == ([100], [40.0])


def test_one_epoch_tells_its_length_as_far_as_it_is_known(write_start):
    assert read_run(write_start('a', (1,), loss=1)).iterations_per_epoch == 6


def test_damaged_files(write_start, tmp_path):
    path = write_start('a', (1, 2), loss=1)
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines, lines[0][:20]]))  # killed while it wrote
    assert len(read_run(tmp_path / 'run').curves['loss'].values) == 4
    path.write_text('\n'.join([lines[0], 'nonsense', *lines[1:]]))
    with pytest.raises(UsageError, match=r'scalars\.json, line 2: no entry of scalars: nonsense'):
        read_run(tmp_path / 'run')


def test_summary(run_tool, write_start, tmp_path):
    write_start('a', (1, 2, 3), loss=5)
    write_start('a', (1, 2), loss=3, run='other')
    lines = run_tool(TOOL, tmp_path / 'run', tmp_path / 'other').stdout.splitlines()
    table = {tuple(line.split()[:2]): line.split()[2:] for line in lines}
    assert table['run', 'loss'] == ['5.05', '5.05', '2.857']
    assert table['other', 'coco/bbox_mAP'] == ['0.2', '0.2', '2']
    assert not any('bbox_mAP_l' in line for line in lines)
    assert lines[-2] == 'run: 21 iterations, 0.500 s per iteration, peak memory 120 MiB'


def test_curves(run_tool, write_start, tmp_path):
    write_start('a', (1, 2, 3), loss=5)
    out = tmp_path / 'curves.png'
    options = ('--out', out, '--keys', 'loss*', 'coco/bbox_mAP', 'lr', '--smooth', 2)
    run_tool(TOOL, tmp_path / 'run', *options, '--x', 'iteration')
    image = cv2.imread(str(out))
    assert min(image.shape[:2]) > 200
    blue = np.array([0xB2, 0x72, 0x00])  # the first run's colour, BGR
    assert (np.abs(image.astype(int) - blue).max(axis=2) < 10).sum() > 300
    done = run_tool(TOOL, tmp_path / 'run', *options, status=2)
    assert 'the file exists' in done.stderr


def test_errors(run_tool, write_start, tmp_path):
    write_start('a', (1,), loss=5)
    (tmp_path / 'empty').mkdir()
    run = tmp_path / 'run'
    for arguments, message in {
        ('gone',): 'there is no run gone',
        (tmp_path / 'empty',): 'has logged no training',
        (run, '--keys', 'mIoU'): '--keys mIoU: no such key; there are coco/bbox_mAP, ',
        (run, run): 'one run is named twice',
        (run, '--smooth', 0): '--smooth 0: give at least 1',
        (run, '--names', 'a', 'b'): '2 names for 1 runs',
        (run, '--out', tmp_path / 'gone/c.png'): 'there is no folder',
    }.items():
        done = run_tool(TOOL, *arguments, status=2)
        assert message in done.stderr

"""Both tools with their options on the embedded data set, for each task."""

import pickle

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.slow

TASKS = {
    # config, folder of the data, short training, checkpoint, metric that the test prints
    'detection': (
        'retinanet_linglo_b0_fpn_shapes.py',
        'coco',
        ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'model.test_cfg.score_thr=0.0'],
        'epoch_1.pth',
        'coco/bbox_mAP: ',
    ),
    'segmentation': (
        'semfpn_linglo_b0_shapes.py',
        'ade/ADEChallengeData2016',
        ['train_cfg.max_iters=4', 'default_hooks.checkpoint.interval=4'],
        'iter_4.pth',
        'mIoU: ',
    ),
    'classification': (
        'linglo_b0_shapes.py',
        'imagenet',
        ['train_cfg.max_epochs=1'],
        'epoch_1.pth',
        'accuracy/top1: ',
    ),
}


@pytest.mark.parametrize('task', TASKS)
def test_train_then_test(task, small_shapes, run_tool, tmp_path):
    config, data, short, checkpoint, metric = TASKS[task]
    common = [f'configs/demo/{config}', '--data-root', small_shapes / data]
    work_dir = tmp_path / 'run'
    run_tool('train', *common, '--work-dir', work_dir, '--cfg-options', *short, process=True)
    common.insert(1, tmp_path / 'run' / checkpoint)
    common += ['--work-dir', tmp_path / 'test']
    out, pictures = tmp_path / 'predictions.pkl', tmp_path / 'pictures'
    plain = run_tool(
        'test',
        *(*common, '--out', out, '--show-dir', pictures, '--cfg-options', *short),
        process=True,
    )
    assert metric in plain.stdout + plain.stderr
    predictions = pickle.loads(out.read_bytes())
    num_pictures = 6 if task == 'classification' else 8
    assert len(predictions) == num_pictures
    drawn = [p for p in pictures.rglob('*') if p.suffix in ('.png', '.jpg')]
    assert len(drawn) == num_pictures + 1  # with the overview
    overview = cv2.imread(str(pictures / 'overview.png'))
    assert overview is not None and len(np.unique(overview)) > 50
    augmented = run_tool('test', *common, '--tta', '--cfg-options', *short, process=True)
    assert metric in augmented.stdout + augmented.stderr

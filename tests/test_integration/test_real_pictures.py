"""The published configs on real photographs: train, checkpoint, evaluate."""

import re

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('backbone', ['linglo_b0', 'qna_vit_tiny'])
def test_detection(backbone, real_data, run_tool, tmp_path):
    config, scale = f'configs/retinanet_{backbone}_fpn_1x_coco.py', '(320,192)'
    data = ('--data-root', real_data / 'coco', '--work-dir', tmp_path)
    small = [
        f'train_dataloader.dataset.pipeline.2.scale={scale}',
        f'val_dataloader.dataset.pipeline.1.scale={scale}',
        f'test_dataloader.dataset.pipeline.1.scale={scale}',
        'train_cfg.max_epochs=2',
        'model.test_cfg.score_thr=0.0',  # after two epochs nothing scores 0.05
    ]
    run_tool('train', config, '--from-scratch', *data, '--cfg-options', *small, process=True)
    checkpoint = tmp_path / 'epoch_2.pth'
    done = run_tool('test', config, checkpoint, *data, '--cfg-options', *small, process=True)
    precision = re.search(r'area=   all \| maxDets=100 \] = (-?\d\.\d+)', done.stdout)
    assert precision and 0 <= float(precision.group(1)) <= 1
    assert checkpoint.stat().st_size > 1e7


def test_segmentation(real_data, run_tool, tmp_path):
    config = 'configs/semfpn_linglo_b0_40k_ade20k.py'
    data = ('--data-root', real_data / 'ade' / 'ADEChallengeData2016', '--work-dir', tmp_path)
    small = [
        'model.data_preprocessor.size=(128,128)',
        'train_dataloader.dataset.pipeline.2.scale=(512,128)',
        'train_dataloader.dataset.pipeline.3.crop_size=(128,128)',
        'train_dataloader.batch_size=2',
        'val_dataloader.dataset.pipeline.1.scale=(512,128)',
        'test_dataloader.dataset.pipeline.1.scale=(512,128)',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
    ]
    run_tool('train', config, '--from-scratch', *data, '--cfg-options', *small, process=True)
    done = run_tool(
        'test',
        *(config, tmp_path / 'iter_2.pth', *data),
        *('--show-dir', tmp_path / 'pictures', '--cfg-options', *small),
        process=True,
    )
    miou = re.search(r'mIoU: (\d+\.\d+)', done.stdout + done.stderr)
    assert miou and 0 <= float(miou.group(1)) <= 100
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 3 + 1  # with the overview

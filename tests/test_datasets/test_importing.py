"""Own data come back as they were exported, and the written config trains."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmvitattn.datasets.importing.recipe import box_statistics, choose_anchors, schedule
from mmvitattn.datasets.importing.records import Box, OwnData, Sample
from mmvitattn.datasets.layouts import LAYOUTS


@pytest.mark.parametrize('kind', ['voc', 'yolo', 'coco'])
def test_boxes_and_classes_come_back(kind, run, labelled, small_shapes, objects):
    """Exported and imported again; VOC has whole pixels only."""
    folder, text = run(kind, labelled / kind)
    assert 'pictures: 40 (32 for training, 8 for validation)' in text
    for split in ('train', 'val'):
        true, found = objects(small_shapes / 'coco', split), objects(folder, split)
        assert true.keys() == found.keys()
        for name in true:
            by_class = [sorted(box[0] for box in boxes[name]) for boxes in (true, found)]
            assert by_class[0] == by_class[1]
            for box in true[name]:
                errors = [
                    np.abs(np.subtract(box[1:], other[1:])).max()
                    for other in found[name]
                    if other[0] == box[0]
                ]
                assert min(errors) <= (0.501 if kind == 'voc' else 0.01)
    assert list(LAYOUTS['coco'].find_problems(folder)) == []


def test_masks_come_back(run, labelled):
    folder, text = run('masks', labelled / 'masks', zero_ignored=True)
    assert list(LAYOUTS['ade20k'].find_problems(folder)) == []
    assert 'no flaws' in text or 'class with few objects' in text
    for path in (labelled / 'masks/annotations/training').iterdir():
        true, found = (
            cv2.imread(str(p), -1) for p in (path, folder / 'annotations/training' / path.name)
        )
        values = np.unique(true)
        assert len(np.unique(found)) == len(values)
        assert ((found == 0) == (true == 0)).all()


def test_class_folders_come_back(run, labelled, small_shapes):
    folder, _ = run('folders', labelled / 'folders')
    assert list(LAYOUTS['imagenet'].find_problems(folder)) == []
    for path in (small_shapes / 'imagenet').rglob('*.jpg'):
        copy = folder / path.relative_to(small_shapes / 'imagenet')
        assert copy.read_bytes() == path.read_bytes()
    whole, text = run('folders', labelled / 'folders/train', out='whole', split=0.5)
    assert 'for training' in text and (whole / 'val/star').is_dir()


@pytest.mark.parametrize(
    ('kind', 'name'), [('voc', 'detector'), ('masks', 'segmenter'), ('folders', 'classifier')]
)
def test_the_config_trains_with_mm(kind, name, run, labelled):
    """Model and data sets are built; the training itself is run by the documentation's test."""
    from mmengine.registry import DATASETS, MODELS, init_default_scope

    import mmvitattn  # noqa: F401

    folder, text = run(kind, labelled / kind, zero_ignored=kind == 'masks')
    assert f'python tools/train.py {folder / name}.py' in text
    cfg = Config.fromfile(folder / f'{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    MODELS.build(cfg.model)
    for split in ('train', 'val'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) > 0 and dataset[0]['inputs'].ndim == 3
    assert (folder / f'{name}.py').read_text().startswith('# A ')


def test_command_line_and_other_backbones(run_tool, labelled, tmp_path):
    from mmengine.registry import MODELS, init_default_scope

    options = ('import', '--format', 'yolo', labelled / 'yolo/data.yaml', '--out', tmp_path / 'out')
    done = run_tool('prepare_data', *options, '--backbone', 'sag_small', '--device', 'cuda')
    assert f'next: python tools/train.py {tmp_path}/out/detector.py' in done.stdout
    cfg = Config.fromfile(tmp_path / 'out/detector.py')
    assert cfg.model.backbone.arch == 'small' and cfg.train_dataloader.batch_size == 16
    assert 'init_cfg' not in cfg.model.backbone
    assert cfg.model.bbox_head.anchor_generator.strides[:3] == [4, 8, 16]
    init_default_scope('mmdet')
    MODELS.build(cfg.model)
    assert 'exists: choose another' in run_tool('prepare_data', *options, status=2).stderr
    wrong = ('--backbone', 'linglo_b9', '--out', tmp_path / 'new')
    done = run_tool('prepare_data', *options, *wrong, status=2)
    assert "there is no backbone 'linglo_b9'" in done.stderr


@pytest.mark.parametrize(
    ('kind', 'name'), [('coco', 'detector'), ('masks', 'segmenter'), ('folders', 'classifier')]
)
def test_configs_start_from_the_weights_of_the_package(kind, name, run_tool, labelled, tmp_path):
    options = ['--zero-ignored'] if kind == 'masks' else []
    source = ('--format', kind, labelled / kind, '--out', tmp_path / 'new')
    run_tool('prepare_data', 'import', *source, *options)
    backbone = Config.fromfile(tmp_path / f'new/{name}.py').model.backbone
    address = 'mmvitattn://linglo-b0_tiny-imagenet'
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=address)


@pytest.mark.parametrize(('device', 'side'), [('cpu', 320), ('cuda', 512)])
def test_pretrained_weights_halve_the_training(device, side):
    samples = [Sample(None, None, [], size=(64, 48), split='train')] * 200
    data = OwnData('detection', ['a'], samples)
    plans = [schedule(data, device, side, pretrained) for pretrained in (False, True)]
    assert plans[1].steps == pytest.approx(plans[0].steps / 2, rel=0.1)


@pytest.mark.parametrize('side', [12, 60, 400])
def test_anchors_reach_from_small_to_large_boxes(side):
    boxes = [Box('a', (0, 0, side, side)), Box('a', (0, 0, 2 * side, side))]
    samples = [Sample(None, None, boxes, size=(1000, 800), split=s) for s in ('train', 'val')]
    statistics = box_statistics(OwnData('detection', ['a'], samples), 'cpu')
    assert statistics.side == {12: 640, 60: 512, 400: 320}[side]
    anchors = choose_anchors(statistics, (8, 16, 32))
    assert anchors.smallest <= max(16, statistics.small) and anchors.strides[:3] == (8, 16, 32)
    assert anchors.largest >= min(statistics.large, 0.9 * statistics.side)

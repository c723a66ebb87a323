"""The demo data set: readable by the usual loaders, truthful, reproducible, never half-made."""

import hashlib
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from mmvitattn.datasets import shapes
from mmvitattn.datasets._shapes_render import render_scene
from mmvitattn.datasets.shapes import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    SHAPE_CLASSES,
    write_shapes,
)

NUM_TRAIN, NUM_VAL, SIZE = 60, 12, 128
ADE = Path('ade', 'ADEChallengeData2016')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', NUM_TRAIN, NUM_VAL, SIZE)


@pytest.fixture(scope='module')
def coco(root):
    return COCO(str(root / 'coco' / 'annotations' / 'instances_train2017.json'))


def read_tree(root):
    files = (path for path in root.rglob('*') if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def read_mask(root, index):
    path = root / ADE / 'annotations' / 'training' / f'ADE_train_{index:08d}.png'
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_same_seed_gives_the_same_bytes(tmp_path):
    first = read_tree(write_shapes(tmp_path / 'a', 4, 2, 64, seed=3))
    assert first == read_tree(write_shapes(tmp_path / 'b', 4, 2, 64, seed=3))
    other = read_tree(write_shapes(tmp_path / 'c', 4, 2, 64, seed=4))
    assert first.keys() == other.keys()
    assert not any(first[name] == other[name] for name in first)


def test_larger_set_begins_with_the_smaller_one(root, tmp_path):
    small = write_shapes(tmp_path / 'small', 2, 1, SIZE)
    for name in ('coco/train2017/000000000002.jpg', 'imagenet/val/star/000000.jpg'):
        assert (small / name).read_bytes() == (root / name).read_bytes()


def test_train_and_val_differ(root):
    name = '000000000001.jpg'
    train, val = ((root / 'coco' / f'{split}2017' / name) for split in ('train', 'val'))
    assert train.read_bytes() != val.read_bytes()


def test_boxes_are_the_extents_of_the_polygons(coco):
    fine = 4  # the tip of a star is narrower than a pixel
    for annotation in coco.anns.values():
        polygons = [(fine * np.array(polygon)).tolist() for polygon in annotation['segmentation']]
        runs = mask_api.merge(mask_api.frPyObjects(polygons, fine * SIZE, fine * SIZE))
        rows, cols = np.nonzero(mask_api.decode(runs))
        extent = np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]) / fine
        x, y, width, height = annotation['bbox']
        box = np.array([x, y, x + width, y + height])
        np.testing.assert_allclose(box, extent, atol=1)
        assert box.min() >= 0
        assert box.max() <= SIZE
        assert annotation['iscrowd'] == 0


def test_polygons_cover_the_visible_area(coco):
    for annotation in coco.anns.values():
        decoded = coco.annToMask(annotation).sum()
        assert decoded == pytest.approx(annotation['area'], rel=0.12, abs=6)


def test_all_categories_and_scales_occur(coco):
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == [*SHAPE_CLASSES]
    assert {annotation['category_id'] for annotation in coco.anns.values()} == set(range(1, 7))
    longest = [max(annotation['bbox'][2:]) for annotation in coco.anns.values()]
    assert max(longest) / min(longest) >= 6


def test_pictures_hold_one_to_six_shapes(coco):
    counts = {len(coco.getAnnIds(index)) for index in coco.getImgIds()}
    assert min(counts) == 1
    assert 4 <= max(counts) <= 6


def test_shapes_overlap_but_stay_visible():
    occluded = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = render_scene(rng, SIZE, [(c, 40.0) for c in range(6)])
        boxes = [annotation['bbox'] for annotation in shapes.coco_annotations(scene)]
        assert len(boxes) == len(scene.categories) >= 1
        low = np.array([box[:2] for box in boxes])
        high = low + np.array([box[2:] for box in boxes])
        meets = (low[:, None] < high[None]).all(-1) & (low[None] < high[:, None]).all(-1)
        occluded += meets.sum() > len(boxes)
        visible = np.bincount(scene.owner.ravel())[1:] / 16
        assert visible.min() >= 24
    assert occluded >= 10


def test_ring_keeps_its_hole():
    ring = SHAPE_CLASSES.index('ring')
    scene = render_scene(np.random.default_rng(0), SIZE, [(ring, 60.0)])
    (annotation,) = shapes.coco_annotations(scene)
    (polygon,) = annotation['segmentation']
    outline = np.array(polygon, np.float32).reshape(-1, 2)
    assert annotation['area'] == pytest.approx(cv2.contourArea(outline), rel=0.05)
    assert annotation['area'] < 0.9 * cv2.contourArea(cv2.convexHull(outline))


def test_masks_agree_with_detection(root, coco):
    seen = set()
    for index in coco.getImgIds():
        mask = read_mask(root, index)
        assert mask.dtype == np.uint8
        assert mask.shape == (SIZE, SIZE)
        assert (mask == 0).mean() < 0.2
        seen |= set(np.unique(mask).tolist())
        for annotation in coco.loadAnns(coco.getAnnIds(index)):
            inside = mask[coco.annToMask(annotation) > 0]
            inside = inside[inside > 0]
            assert (inside == annotation['category_id']).mean() > 0.9
    assert seen == set(range(len(SEGMENTATION_CLASSES) + 1))


def test_segmentation_shows_the_pictures_of_detection(root):
    image = root / ADE / 'images' / 'validation' / 'ADE_val_00000003.jpg'
    assert image.read_bytes() == (root / 'coco/val2017/000000000003.jpg').read_bytes()
    assert len(SEGMENTATION_PALETTE) == len(set(SEGMENTATION_PALETTE)) == len(SEGMENTATION_CLASSES)


@pytest.mark.parametrize(('split', 'count'), [('train', 9), ('val', 2)])
def test_class_folders_are_complete(root, split, count):
    folders = (root / 'imagenet' / split).iterdir()
    counts = {folder.name: len(list(folder.iterdir())) for folder in folders}
    assert counts == dict.fromkeys(SHAPE_CLASSES, count)


def test_second_call_changes_nothing(root):
    def times():
        return {path: path.stat().st_mtime_ns for path in root.rglob('*')}

    before, calls = times(), []
    write_shapes(root, NUM_TRAIN, NUM_VAL, SIZE, progress=lambda *numbers: calls.append(numbers))
    assert times() == before
    assert not calls


def test_progress_counts_every_picture(tmp_path):
    calls = []
    root = write_shapes(tmp_path / 'new', 3, 2, 64, progress=lambda *numbers: calls.append(numbers))
    written = len(list(root.glob('coco/*/*.jpg'))) + len(list(root.glob('imagenet/*/*/*.jpg')))
    assert calls == [(done, written) for done in range(1, written + 1)]
    assert json.loads((root / 'shapes.json').read_text())['num_train'] == 3


def test_never_overwrites(tmp_path):
    root = tmp_path / 'mine'
    root.mkdir()
    (root / 'notes.txt').write_text('precious')
    with pytest.raises(FileExistsError, match=r'mine.*--root'):
        write_shapes(root, 1, 1, 64)
    assert (root / 'notes.txt').read_text() == 'precious'
    with pytest.raises(FileExistsError, match='not a shapes data set'):
        write_shapes(root / 'notes.txt', 1, 1, 64)


def test_refuses_other_arguments_and_lost_files(tmp_path):
    root = tmp_path / 'empty'
    root.mkdir()
    write_shapes(root, 1, 1, 64)
    with pytest.raises(FileExistsError, match='other arguments'):
        write_shapes(root, 1, 1, 64, seed=1)
    (root / 'coco/train2017/000000000001.jpg').unlink()
    with pytest.raises(FileExistsError, match='some files are missing'):
        write_shapes(root, 1, 1, 64)


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    calls = itertools.count()

    def fail_later(rng, size, wanted):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return render_scene(rng, size, wanted)

    monkeypatch.setattr(shapes, 'render_scene', fail_later)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / 'shapes', 5, 1, 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'wrong', [{'num_train': 0}, {'num_val': -1}, {'size': 63}, {'seed': -1}, {'num_train': 2.0}]
)
def test_rejects_bad_arguments(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_shapes(tmp_path / 'shapes', **wrong)
    assert not list(tmp_path.iterdir())


def test_mmseg_reads_it(root):
    pytest.importorskip('mmengine')
    datasets = pytest.importorskip('mmseg.datasets')
    dataset = datasets.BaseSegDataset(
        data_root=str(root / ADE),
        data_prefix={'img_path': 'images/training', 'seg_map_path': 'annotations/training'},
        metainfo={'classes': SEGMENTATION_CLASSES, 'palette': SEGMENTATION_PALETTE},
        reduce_zero_label=True,
        pipeline=[datasets.transforms.LoadAnnotations()],
    )
    assert len(dataset) == NUM_TRAIN
    labels = np.unique([dataset[index]['gt_seg_map'] for index in range(NUM_TRAIN)])
    assert labels.tolist() == [*range(len(SEGMENTATION_CLASSES)), 255]


def test_mmpretrain_reads_it(root):
    pytest.importorskip('mmengine')
    datasets = pytest.importorskip('mmpretrain.datasets')
    dataset = datasets.CustomDataset(data_root=str(root / 'imagenet'), data_prefix='val')
    assert tuple(dataset.CLASSES) == SHAPE_CLASSES
    assert len(dataset) == 2 * len(SHAPE_CLASSES)

"""What YOLO's, COCO's and mask files may contain, and how pictures are found."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmvitattn.datasets.importing.files import PictureIndex, split_of
from mmvitattn.datasets.importing.masks import read_masks
from mmvitattn.datasets.importing.records import NOTES, RULES, Flaws
from mmvitattn.datasets.importing.yolo import read_yolo
from mmvitattn.errors import UsageError

SIZE = (64, 48)  # width and height of the pictures that `write_picture` writes


@pytest.fixture(scope='session')
def write_yolo(write_picture):

    def call(folder, lines, names=('cat', 'dog'), yaml=None):
        write_picture(folder / 'images/a.jpg')
        write_picture(folder / 'images/b.jpg')
        (folder / 'labels').mkdir()
        (folder / 'labels/a.txt').write_text('\n'.join(lines))
        (folder / 'labels/b.txt').write_text('0 0.5 0.5 0.5 0.5')
        (folder / 'data.yaml').write_text(yaml or f'train: images\nnames: {list(names)}\n')
        return folder

    return call


def test_lines_of_yolo(tmp_path, write_yolo):
    lines = [
        '1 0.5 0.5 0.25 0.5',
        '0 0.5 0.5 0.25 0.5 0.93',  # confidence
        '1 0.1 0.1 0.5 0.1 0.5 0.5',  # polygon
        '2 0.5 0.5 0.25 0.5',
        '0.5 0.5 0.5 0.25 0.5',
        '0 0.5 nan 0.25 0.5',
        '0 0.5 0.5',
        'cat 0.5 0.5 0.5 0.5',
        '',
    ]
    flaws = Flaws()
    data = read_yolo(write_yolo(tmp_path, lines), flaws)
    boxes = data.samples[0].boxes
    assert [box.label for box in boxes] == ['dog', 'cat', 'dog']
    assert boxes[0].corners == boxes[1].corners == (0.375, 0.25, 0.625, 0.75)
    assert boxes[2].corners == (0.1, 0.1, 0.5, 0.5) and len(boxes[2].segmentation[0]) == 6
    assert [flaw.detail.split(':')[0] for flaw in flaws.found] == [f'line {i}' for i in range(4, 9)]


def test_key_points_are_ignored(tmp_path, write_yolo):
    yaml = 'train: images\nnames: {0: cat}\nkpt_shape: [2, 3]\n'
    folder = write_yolo(tmp_path, ['0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.9 0.9 2'], yaml=yaml)
    assert read_yolo(folder, Flaws()).samples[0].boxes[0].corners == (0.375, 0.25, 0.625, 0.75)


@pytest.mark.parametrize(
    ('yaml', 'message'),
    [
        ('train: images\nnames: cat\n', "names is 'cat'"),
        ('train: images\nnames: {1: cat}\n', 'their indices from 0'),
        ('train: pictures\nnames: [cat]\n', "names 'pictures', which is not in"),
        ('names: [cat]\n', 'has no pictures'),
        ('names: [cat', 'is not valid YAML'),
        ('names: !!python/object/apply:os.getcwd []', 'is not valid YAML'),
    ],
)
def test_wrong_yaml(yaml, message, tmp_path, write_yolo):
    folder = write_yolo(tmp_path, [], yaml=yaml)
    with pytest.raises(UsageError, match=message):
        read_yolo(folder, Flaws())


def test_yolo_with_class_file(tmp_path, write_yolo):
    folder = write_yolo(tmp_path, ['1 0.5 0.5 0.25 0.5'])
    (folder / 'data.yaml').unlink()
    with pytest.raises(UsageError, match='neither a YAML file'):
        read_yolo(folder, Flaws())
    (folder / 'classes.txt').write_text('cat\ndog\n')
    assert read_yolo(folder, Flaws()).samples[0].boxes[0].label == 'dog'


def test_objects_without_parts(tmp_path, run, found, objects, write_picture):
    for name in 'abc':
        write_picture(tmp_path / f'src/train/{name}.jpg')
    images = [
        dict(id=i, file_name=f'C:\\data\\{n}.jpg', width=64, height=48)
        for i, n in enumerate('abcd')
    ]
    good = dict(image_id=0, category_id=1, bbox=[1, 2, 20, 30])
    polygon = dict(image_id=1, category_id=1, segmentation=[[1, 1, 9, 1, 9, 9]])
    bad = [dict(good, bbox=[1, 2, 3]), dict(good, category_id=9), dict(good, image_id=77)]
    bad += [dict(good, bbox=[1, 2, None, 4]), dict(good, image_id=[1]), dict(category_id=1)]
    content = dict(images=images, annotations=[good, polygon, *bad])
    content['categories'] = [dict(id=1, name='cat '), dict(id=2, name='dog')]
    (tmp_path / 'src/train/_annotations.coco.json').write_text(json.dumps(content))
    folder, _ = run('coco', tmp_path / 'src')
    assert len(found(folder, 'annotation is incomplete')) == len(bad)
    assert "'C:\\\\data\\\\d.jpg'" in found(folder, 'picture is missing')[0]
    assert found(folder, 'class without objects') == ['  dog']
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert every['a.jpg'] == [('cat', 1, 2, 21, 32)] and every['b.jpg'] == [('cat', 1, 1, 9, 9)]
    assert every['c.jpg'] == []  # background


def test_broken_and_double_json(labelled, run, tmp_path, found):
    shutil.copytree(labelled / 'coco', tmp_path / 'src')
    path = tmp_path / 'src/annotations/instances_val2017.json'
    shutil.copy(path, tmp_path / 'src/annotations/instances_old_val2017.json')
    with pytest.raises(UsageError, match='both describe'):
        run('coco', tmp_path / 'src')
    (tmp_path / 'src/annotations/instances_old_val2017.json').unlink()
    path.write_text(path.read_text()[:1000])
    folder, _ = run('coco', tmp_path / 'src')
    assert 'is not valid JSON' in found(folder, 'annotation file cannot be read')[0]


@pytest.fixture(scope='session')
def write_masks(write_picture):

    def call(folder, *masks, suffix='.png'):
        for i, mask in enumerate(masks):
            write_picture(folder / f'images/{i}.jpg')
            (folder / 'masks').mkdir(exist_ok=True)
            mask = (
                mask
                if isinstance(mask, Image.Image)
                else Image.fromarray(np.asarray(mask, np.uint8))
            )
            mask.save(folder / f'masks/{i}{suffix}')
        return folder

    return call


def index_mask(*values):
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    for i, value in enumerate(values):
        mask[i * 8 : i * 8 + 8] = value
    return mask


def test_colour_masks(tmp_path, run, write_masks):
    mask = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    mask[:10], mask[10:20] = (128, 64, 128), (1, 2, 3)
    folder = write_masks(tmp_path / 'src', mask, mask)
    (folder / 'labelmap.txt').write_text(
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n'
    )
    out, text = run('masks', folder)
    assert 'mask value without a class: 2' in text and '#010203 (640 pixels)' in text
    written = cv2.imread(str(next((out / 'annotations/training').iterdir())), -1)
    assert (written[:10] == 2).all() and (written[10:20] == 0).all() and (written[20:] == 1).all()
    (folder / 'labelmap.txt').write_text('background\nroad\n')
    with pytest.raises(UsageError, match="'background' has no colour"):
        run('masks', folder, out='other')


def test_meanings_of_values(tmp_path, write_masks):
    palette = Image.fromarray(index_mask(0, 2, 255)).convert('P')
    data = read_masks(write_masks(tmp_path / 'a', palette, index_mask(5)), Flaws(), None, False)
    assert data.classes == ['class_0', 'class_2', 'class_5']
    assert data.mask_values == {0: 0, 2: 1, 5: 2}
    binary = read_masks(write_masks(tmp_path / 'b', index_mask(0, 255)), Flaws(), None, False)
    assert binary.classes == ['background', 'foreground'] and binary.mask_values == {0: 0, 255: 1}
    names, flaws = tmp_path / 'names.txt', Flaws()
    names.write_text('sky\n2 road sign\n')
    data = read_masks(write_masks(tmp_path / 'c', index_mask(0, 2, 7)), flaws, names, False)
    assert data.classes == ['sky', 'road sign'] and data.mask_values == {0: 0, 2: 1}
    assert [flaw.kind for flaw in flaws.found] == ['mask value without a class']
    shaded = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3))
    with pytest.raises(UsageError, match='different values'):
        read_masks(write_masks(tmp_path / 'd', shaded), Flaws(), None, False)


def test_masks_that_do_not_fit(tmp_path, run, found, write_masks, write_picture):
    good = index_mask(0, 1)
    folder = write_masks(tmp_path / 'src', good, good, good[:20], good)
    Image.fromarray(good).save(folder / 'masks/3.png', format='JPEG')
    write_picture(folder / 'images/no_mask_here.jpg')
    Image.fromarray(good).save(folder / 'masks/9.png')
    out, _ = run('masks', folder)
    assert '2.png' in found(out, 'mask of another size')[0]
    assert 'it is a JPEG' in found(out, 'mask cannot be read')[0]
    assert 'no_mask_here.jpg' in found(out, 'mask is missing')[0]
    assert '9.png' in found(out, 'picture is missing')[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text('0123456789.- ena', max_size=30), max_size=5))
def test_random_lines_of_yolo(tmp_path_factory, write_yolo, lines):
    flaws = Flaws()
    data = read_yolo(write_yolo(tmp_path_factory.mktemp('yolo'), lines), flaws)
    lines = [line for line in '\n'.join(lines).splitlines() if line.strip()]
    wrong = [flaw for flaw in flaws.found if flaw.kind == 'annotation is incomplete']
    assert len(data.samples[0].boxes) + len(wrong) == len(lines)


def test_names_of_splits_and_rules():
    names = dict(train2017='train', valid='val', Validation='val', test_labels='test')
    assert {name: split_of(Path(name)) for name in names} == names
    assert split_of(Path('pictures/trains.json')) is None
    assert not set(RULES) & set(NOTES)


def test_pictures_are_found_by_other_paths(tmp_path, write_picture):
    for name in ('a/x.jpg', 'b/x.jpg', 'c/y.PNG', '.hidden/z.jpg'):
        write_picture(tmp_path / name)
    index = PictureIndex(tmp_path)
    assert index.find('/home/me/b/x.jpg') == tmp_path / 'b/x.jpg'
    assert index.find('D:\\pictures\\Y.png') == tmp_path / 'c/y.PNG'
    assert index.find('x.jpg', tmp_path / 'a') == tmp_path / 'a/x.jpg'
    assert index.find('x.jpg') is None  # either
    assert index.find('z.jpg') is None and index.find('') is None

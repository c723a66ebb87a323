import json

import cv2
import numpy as np
import pytest

from mmvitattn.datasets.layouts import LAYOUTS

TOOL = 'tools/prepare_data.py'


def write_image(path, value=0, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, channels), value, np.uint8).squeeze())


def make_coco(root):
    for split in ('train2017', 'val2017'):
        write_image(root / split / '000000000001.jpg')
        content = dict(images=[dict(id=1, file_name='000000000001.jpg')], annotations=[dict(id=1)])
        path = root / f'annotations/instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**content, 'categories': [dict(id=1)]}))


def make_ade20k(root):
    for split, name in (('training', 'ADE_train_00000001'), ('validation', 'ADE_val_00000001')):
        write_image(root / 'images' / split / f'{name}.jpg')
        write_image(root / 'annotations' / split / f'{name}.png', 150, channels=1)


def make_imagenet(root):
    for split in ('train', 'val'):
        for name in ('n01', 'n02'):
            write_image(root / split / name / 'a.JPEG'.lower())


def make_cifar10(root):
    (root / 'cifar-10-batches-py').mkdir(parents=True)
    for name in [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch', 'batches.meta']:
        with open(root / 'cifar-10-batches-py' / name, 'wb') as file:
            file.truncate(31_000_000)  # sparse


def make_tiny_imagenet(root):
    for name in ('n02', 'n01'):
        write_image(root / f'train/{name}/images/{name}_0.jpg')
        (root / f'train/{name}/images/{name}_0.jpg').rename(
            root / f'train/{name}/images/{name}_0.JPEG'
        )
    write_image(root / 'val/images/val_0.jpg')
    (root / 'val/val_annotations.txt').write_text('val_0.jpg\tn02\t0\t32\t44\t62\n')
    LAYOUTS['tiny-imagenet'].prepare(root)


MAKERS = {
    'coco': make_coco,
    'ade20k': make_ade20k,
    'imagenet': make_imagenet,
    'tiny-imagenet': make_tiny_imagenet,
    'cifar10': make_cifar10,
}


def problems(name, root):
    return list(LAYOUTS[name].find_problems(root))


@pytest.mark.parametrize('name', MAKERS)
def test_a_correct_folder_has_no_problems(name, tmp_path):
    MAKERS[name](tmp_path)
    assert problems(name, tmp_path) == []
    assert LAYOUTS[name].summarize(tmp_path)


@pytest.mark.parametrize('name', MAKERS)
def test_an_empty_folder_is_described(name, tmp_path):
    assert problems(name, tmp_path)
    text = LAYOUTS[name].describe(tmp_path)
    assert str(tmp_path) in text and 'http' in text


@pytest.mark.parametrize(
    ('name', 'path', 'message'),
    [
        ('coco', 'val2017/000000000001.jpg', 'lists a picture that is missing'),
        ('coco', 'annotations/instances_train2017.json', 'instances_train2017.json is missing'),
        ('ade20k', 'annotations/training/ADE_train_00000001.png', 'has no mask for ADE_train'),
        ('imagenet', 'val/n02/a.jpeg', 'no pictures in'),
        ('cifar10', 'cifar-10-batches-py/test_batch', 'test_batch is missing'),
    ],
)
def test_a_missing_file_is_named(name, path, message, tmp_path):
    MAKERS[name](tmp_path)
    (tmp_path / path).unlink()
    assert message in ' '.join(problems(name, tmp_path))


def test_a_broken_annotation_is_named(tmp_path):
    make_coco(tmp_path)
    (tmp_path / 'annotations/instances_val2017.json').write_text('{"images": [')
    assert 'instances_val2017.json is not a readable COCO' in ' '.join(problems('coco', tmp_path))


def test_masks_that_are_no_index_masks_are_named(tmp_path):
    make_ade20k(tmp_path)
    write_image(tmp_path / 'annotations/validation/ADE_val_00000001.png', 200, channels=1)
    assert 'is not an index mask of 0 (ignored) to 150' in ' '.join(problems('ade20k', tmp_path))


def test_many_missing_files_are_counted(tmp_path):
    make_coco(tmp_path)
    path = tmp_path / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['images'] = [dict(id=i, file_name=f'{i}.jpg') for i in range(20)]
    path.write_text(json.dumps(content))
    found = problems('coco', tmp_path)
    assert len(found) == 6 and '15 more files' in found[-1]


def test_command_line(tmp_path, run_tool):
    done = run_tool(TOOL, 'coco', '--root', tmp_path / 'gone', status=2)
    assert 'is not a folder' in done.stderr and 'cocodataset.org' in done.stderr
    make_coco(tmp_path)
    done = run_tool(TOOL, 'coco', '--root', tmp_path)
    assert 'is in order' in done.stdout and '1 of 118,287' in done.stdout


def test_shapes_are_made_and_not_overwritten(tmp_path, run_tool):
    options = ('shapes', '--root', tmp_path / 'shapes', '--num-train', 4, '--num-val', 2)
    assert 'is ready' in run_tool(TOOL, *options).stdout
    run_tool(TOOL, *options)  # the same again: nothing to do
    done = run_tool(TOOL, *options, '--seed', 1, status=2)
    assert 'other arguments' in done.stderr


def test_stray_files_beside_class_folders_are_ignored(tmp_path):
    make_imagenet(tmp_path)
    (tmp_path / 'val/valprep.sh').touch()
    assert problems('imagenet', tmp_path) == []


def test_empty_contents_are_named(tmp_path):
    make_coco(tmp_path / 'coco')
    path = tmp_path / 'coco/annotations/instances_val2017.json'
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    assert 'lists no pictures' in ' '.join(problems('coco', tmp_path / 'coco'))
    make_cifar10(tmp_path)
    (tmp_path / 'cifar-10-batches-py/data_batch_3').write_bytes(b'')
    assert 'data_batch_3 is too small' in ' '.join(problems('cifar10', tmp_path))


def test_masks_without_a_picture_are_named(tmp_path):
    make_ade20k(tmp_path)
    write_image(tmp_path / 'annotations/training/ADE_train_00000002.png', 1, channels=1)
    assert 'has no picture for ADE_train_00000002' in ' '.join(problems('ade20k', tmp_path))


def test_tiny_imagenet_gets_the_list_of_its_validation_labels(run_tool, tmp_path):
    """Classes are numbered in the order of their names, as mmpretrain numbers folders."""
    make_tiny_imagenet(tmp_path)
    labels = tmp_path / 'val_labels.txt'
    assert labels.read_text() == 'val_0.jpg 1\n'
    labels.unlink()
    (problem,) = problems('tiny-imagenet', tmp_path)
    assert 'prepare_data.py tiny-imagenet' in problem
    assert '2 classes' in run_tool(TOOL, 'tiny-imagenet', '--root', tmp_path).stdout
    assert labels.read_text() == 'val_0.jpg 1\n'
    (tmp_path / 'val/val_annotations.txt').write_text('val_1.jpg\tn03\n')
    assert len(problems('tiny-imagenet', tmp_path)) == 2  # the class and the picture
    (tmp_path / 'val/val_annotations.txt').write_text('val_0.jpg n02\n')
    labels.unlink()
    assert 'without a tab and a class: val_0.jpg n02' in problems('tiny-imagenet', tmp_path)[0]

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvitattn.__main__ import find_tools

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root():
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def seed():
    """The same random weights, images and dropped paths in each run and order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_default_scope():
    """A test that sets MMEngine's default scope, by a Runner or a config, does so for itself."""
    yield
    scopes = sys.modules.get('mmengine.registry')
    if scopes is not None:
        scopes.DefaultScope._instance_dict.clear()


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Runs a tool of the repository, from its root; returns exit status, stdout and stderr.

    By default its ``main`` is called in this process, which is fast. With ``process`` it is a
    process of its own, as for a user, with ``env`` added to its environment and the words of
    ``launcher``, e.g. ``-m torch.distributed.run``, before the tool; both imply it. ``status`` is
    the exit status that is expected, ``None`` for any.
    """

    def run(tool, *arguments, status=0, process=False, env=None, launcher=()):
        path, words = str(find_tools()[Path(tool).stem]), [str(word) for word in arguments]
        if process or env or launcher:
            command = [sys.executable, *launcher, path, *words]
            env = {**os.environ, **(env or {})}
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
        else:
            monkeypatch.chdir(ROOT)
            monkeypatch.setattr(sys, 'argv', [path, *words])
            capsys.readouterr()
            code = call_main(path)
            done = subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())
        assert status in (done.returncode, None), f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
        return done

    yield run
    logging.disable(logging.NOTSET)  # the tools silence the toolboxes' notes


@pytest.fixture(scope='session')
def run_code():
    """Runs Python code in a process of its own; returns what it prints."""

    def run(code):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def call_main(path):
    """Exit status of a script's ``main``."""
    try:
        runpy.run_path(path, run_name='tool_in_test')['main']()
    except SystemExit as end:
        return end.code or 0
    return 0


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


@pytest.fixture(scope='session')
def labelled(small_shapes, tmp_path_factory):
    """The embedded data set as labelling tools would write it: a folder for each format."""
    folder = tmp_path_factory.mktemp('labelled')
    write_voc(small_shapes / 'coco', folder / 'voc')
    write_yolo(small_shapes / 'coco', folder / 'yolo')
    (folder / 'coco').symlink_to(small_shapes / 'coco')
    (folder / 'masks').symlink_to(small_shapes / 'ade/ADEChallengeData2016')
    (folder / 'folders').symlink_to(small_shapes / 'imagenet')
    return folder


def read_coco(folder):
    """Yields split, picture, size, and (class, x1, y1, x2, y2) of each object."""
    for split in ('train', 'val'):
        content = json.loads((folder / f'annotations/instances_{split}2017.json').read_text())
        names = {c['id']: c['name'] for c in content['categories']}
        for image in content['images']:
            found = [a for a in content['annotations'] if a['image_id'] == image['id']]
            boxes = [(names[a['category_id']], *a['bbox']) for a in found]
            boxes = [(name, x, y, x + w, y + h) for name, x, y, w, h in boxes]
            size = (image['width'], image['height'])
            yield split, folder / f'{split}2017' / image['file_name'], size, boxes


def write_voc(coco, folder):
    """Pascal VOC: an XML file for each picture; boxes in whole pixels, of which 1 is the first."""
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (folder / part).mkdir(parents=True)
    for split, picture, (width, height), boxes in read_coco(coco):
        name = f'{split}_{picture.name}'
        shutil.copy(picture, folder / 'JPEGImages' / name)
        objects = ''.join(
            f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{round(x1) + 1}'
            f'</xmin><ymin>{round(y1) + 1}</ymin><xmax>{round(x2)}</xmax><ymax>{round(y2)}</ymax>'
            '</bndbox></object>'
            for label, x1, y1, x2, y2 in boxes
        )
        size = f'<size><width>{width}</width><height>{height}</height></size>'
        text = f'<annotation><filename>{name}</filename>{size}{objects}</annotation>'
        (folder / 'Annotations' / f'{Path(name).stem}.xml').write_text(text)
        with open(folder / f'ImageSets/Main/{split}.txt', 'a') as file:
            file.write(f'{Path(name).stem}\n')


def write_yolo(coco, folder):
    """YOLO: a text file for each picture, with fractions of width and height."""
    names = sorted({box[0] for *_, boxes in read_coco(coco) for box in boxes})
    for split, picture, (width, height), boxes in read_coco(coco):
        for part in ('images', 'labels'):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / 'images' / split / picture.name)
        lines = [
            f'{names.index(label)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} '
            f'{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n'
            for label, x1, y1, x2, y2 in boxes
        ]
        (folder / 'labels' / split / f'{picture.stem}.txt').write_text(''.join(lines))
    text = f'train: ../images/train\nval: ../images/val\nnames: {names}\n'
    (folder / 'data.yaml').write_text(text)

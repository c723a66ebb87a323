"""Imports own data, writes pictures, and reads what the import wrote."""

import json

import numpy as np
import pytest
from PIL import Image

from mmvitattn.datasets.importing import Backbone, ImportOptions, import_data

LINGLO = Backbone('mmvitattn.LinGlo', 'b0', (32, 64, 160, 256), (4, 8, 16, 32))
SIZE = (64, 48)  # width and height of the pictures that `write_picture` writes


@pytest.fixture
def run(root, tmp_path):
    """Imports a source; returns the folder and the printed lines."""

    def call(kind, source, out='out', **options):
        folder = tmp_path / out
        lines = import_data(
            source, folder, ImportOptions(kind, **options), LINGLO, str(root / 'configs')
        )
        return folder, '\n'.join(lines)

    return call


@pytest.fixture(scope='session')
def objects():
    """Class and corners of each object, by picture; of a folder in COCO's layout."""

    def call(folder, split):
        content = json.loads((folder / f'annotations/instances_{split}2017.json').read_text())
        names = {c['id']: c['name'] for c in content['categories']}
        pictures = {i['id']: i['file_name'].removeprefix(f'{split}_') for i in content['images']}
        found = {name: [] for name in pictures.values()}
        for a in content['annotations']:
            x, y, w, h = a['bbox']
            box = (names[a['category_id']], x, y, x + w, y + h)
            found[pictures[a['image_id']]].append(box)
        return {name: sorted(boxes) for name, boxes in found.items()}

    return call


@pytest.fixture(scope='session')
def found():
    """Lines of the report about a kind of flaw."""

    def call(folder, kind):
        text = (folder / 'report.txt').read_text()
        lines = text.partition(f'\n{kind}: ')[2].splitlines()[1:]
        return [line for i, line in enumerate(lines) if all(x[:2] == '  ' for x in lines[: i + 1])]

    return call


@pytest.fixture(scope='session')
def write_picture():

    def call(path, size=SIZE, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(path, **options)
        return path

    return call

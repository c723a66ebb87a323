"""Flaws of own data are found and handled by the rules, each and at random."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mmvitattn.datasets.importing.checks import check_boxes, turn
from mmvitattn.datasets.importing.records import RULES, Box, Flaws, OwnData, Sample
from mmvitattn.datasets.importing.voc import read_voc
from mmvitattn.datasets.importing.writing import upright_mask
from mmvitattn.errors import UsageError

SIZE = (64, 48)  # width and height of the pictures that `write_picture` writes


def voc_object(x1, y1, x2, y2, name='cat', more=''):
    ends = zip(('xmin', 'ymin', 'xmax', 'ymax'), (x1, y1, x2, y2), strict=True)
    box = ''.join(f'<{tag}>{value}</{tag}>' for tag, value in ends)
    return f'<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>'


@pytest.fixture(scope='session')
def write_voc(write_picture):

    def call(folder, stem, *parts, size=SIZE, filename=None, picture=True):
        if picture:
            write_picture(folder / f'{stem}.jpg')
        text = f'<filename>{filename or stem + ".jpg"}</filename>'
        text += f'<size><width>{size[0]}</width><height>{size[1]}</height></size>'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{stem}.xml').write_text(f'<annotation>{text}{"".join(parts)}</annotation>')

    return call


@pytest.fixture
def voc(tmp_path, write_voc):
    """A folder of two good pictures, to which flaws are added."""
    for stem in ('good1', 'good2'):
        write_voc(tmp_path / 'voc', stem, voc_object(5, 6, 30, 40))
    return tmp_path / 'voc'


@pytest.mark.parametrize(
    ('kind', 'part', 'boxes'),
    [
        ('box without area', voc_object(9, 9, 9, 20), 0),
        ('box outside the picture', voc_object(70, 9, 90, 20), 0),
        ('box partly outside the picture', voc_object(41, 11, 90, 20), 1),
        ('corners in the wrong order', voc_object(30, 40, 11, 21), 1),
        ('object annotated twice', voc_object(2, 3, 20, 21) * 2, 1),
        ('annotation is incomplete', voc_object('a', 3, 20, 21), 0),
        ('annotation is incomplete', voc_object('nan', 3, 20, 21), 0),
        ('annotation is incomplete', '<object><name>cat</name></object>', 0),
        ('annotation is incomplete', voc_object(1, 3, 20, 21, name=''), 0),
    ],
)
def test_flaws_of_objects(kind, part, boxes, voc, run, found, objects, write_voc):
    write_voc(voc, 'flawed', part)
    folder, text = run('voc', voc)
    assert f'{kind}: 1; {RULES[kind]}' in text
    assert len(found(folder, kind)) == 1 and 'flawed.xml' in found(folder, kind)[0]
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert len(every['flawed.jpg']) == boxes
    expected = {
        'box partly outside the picture': (40, 10, 64, 20),
        'corners in the wrong order': (10, 20, 30, 40),
    }
    if kind in expected:
        assert every['flawed.jpg'][0][1:] == expected[kind]
    with pytest.raises(UsageError, match='--strict') as caught:
        run('voc', voc, out='strict', strict=True)
    assert kind in str(caught.value) and not (folder.parent / 'strict').exists()


def test_flaws_of_files(voc, run, found, objects, write_picture, write_voc):
    write_voc(voc, 'absent', voc_object(1, 1, 9, 9), picture=False)
    write_voc(voc, 'cut', voc_object(1, 1, 9, 9))
    (voc / 'cut.jpg').write_bytes((voc / 'good1.jpg').read_bytes()[:-300])
    write_voc(voc, 'text', voc_object(1, 1, 9, 9))
    (voc / 'text.jpg').write_text('no picture')
    write_picture(voc / 'unlabelled.jpg')
    (voc / 'broken.xml').write_text('<annotation><object>')
    (voc / 'bomb.xml').write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    (voc / 'other.xml').write_text('<html/>')
    write_voc(voc, 'renamed', voc_object(1, 1, 9, 9), filename='good1.jpg')
    folder, _ = run('voc', voc)
    assert 'absent.xml' in found(folder, 'picture is missing')[0]
    unreadable = found(folder, 'picture cannot be read')
    assert sorted(x.split('/')[-1].split(':')[0] for x in unreadable) == ['cut.jpg', 'text.jpg']
    assert 'unlabelled.jpg' in found(folder, 'picture without annotation')[0]
    files = ' '.join(found(folder, 'annotation file cannot be read'))
    assert all(word in files for word in ('broken.xml', 'bomb.xml', 'entities', '<html>'))
    assert 'used: renamed.jpg' in found(folder, 'picture of another name')[0]
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert set(every) == {'good1.jpg', 'good2.jpg', 'renamed.jpg'}


def test_sizes_that_differ(voc, run, found, objects, write_voc):
    write_voc(voc, 'half', voc_object(3, 5, 10, 20), size=(32, 24))
    write_voc(voc, 'other', voc_object(3, 5, 10, 20), size=(100, 20))
    write_voc(voc, 'unknown', voc_object(3, 5, 10, 20), size=(0, 0))
    folder, _ = run('voc', voc)
    assert len(found(folder, 'size differs from the file')) == 2
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert every['half.jpg'] == [('cat', 4, 8, 20, 40)] and 'other.jpg' not in every
    assert every['unknown.jpg'] == [('cat', 2, 4, 10, 20)]


def test_difficult_objects_are_ignored(voc, run, write_voc):
    write_voc(voc, 'hard', voc_object(3, 5, 10, 20, more='<difficult>1</difficult>'))
    folder, _ = run('voc', voc, split=0.5)
    content = [json.loads(p.read_text()) for p in (folder / 'annotations').iterdir()]
    flags = [a['iscrowd'] for part in content for a in part['annotations']]
    assert sorted(flags) == [0, 0, 1]


def test_equal_names_in_several_folders(tmp_path, run, found, objects, write_voc):
    for part in ('day', 'dusk', 'night'):  # the last one is for validation
        write_voc(tmp_path / 'voc' / part, 'a', voc_object(1, 1, 9, 9))
    folder, _ = run('voc', tmp_path / 'voc')
    assert 'imported as dusk__a.jpg' in found(folder, 'picture name is used twice')[0]
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert set(every) == {'a.jpg', 'dusk__a.jpg'} and all(map(len, every.values()))


@pytest.mark.parametrize('orientation', range(2, 9))
def test_exif_rotation(orientation, tmp_path, run, found, objects, write_voc):
    """A box of the stored picture is where its pixels are in the upright one."""
    values = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    values[8:16, 24:56] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    for stem in ('a', 'b'):
        write_voc(tmp_path / 'voc', stem, voc_object(25, 9, 56, 16))
        Image.fromarray(values).save(tmp_path / f'voc/{stem}.jpg', exif=exif, quality=100)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / 'voc/a.jpg')))[..., 0]
    rows, columns = np.nonzero(upright > 127)
    true = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    x, y = turn(orientation, *SIZE)(24, 8)
    assert x in true[::2] and y in true[1::2]
    sample = Sample(tmp_path, tmp_path, size=upright.shape[::-1], orientation=orientation)
    mask = upright_mask(values[..., 0], sample)
    assert ((mask > 127) == (upright > 127)).all() or orientation < 5
    folder, _ = run('voc', tmp_path / 'voc')
    assert len(found(folder, 'EXIF rotation')) == 2
    written = Image.open(
        folder / 'train2017/a.jpg'
        if (folder / 'train2017/a.jpg').exists()
        else folder / 'val2017/a.jpg'
    )
    assert written.size == upright.shape[::-1] and written.getexif().get(0x0112, 1) == 1
    if orientation > 4:  # otherwise the size does not say for which picture the box is
        assert {**objects(folder, 'train'), **objects(folder, 'val')}['a.jpg'][0][1:] == true


def test_lists(voc, run, tmp_path, found, objects, write_voc):
    for stem in ('third', 'fourth'):
        write_voc(voc, stem, voc_object(5, 6, 30, 40))
    lists = [tmp_path / 'train.csv', tmp_path / 'val.txt']
    lists[0].write_text('filename,width\ngood1.jpg,64\ngood1.jpg,64\ngone.jpg,64\nthird.jpg,64\n')
    lists[1].write_text('good2\nimages\\third.jpg\n')
    folder, _ = run('voc', voc, lists=lists)
    assert set(objects(folder, 'train')) == {'good1.jpg'}
    assert set(objects(folder, 'val')) == {'good2.jpg', 'third.jpg'}
    assert 'gone.jpg' in found(folder, 'list names no picture')[0]
    assert 'third.jpg' in found(folder, 'picture in both lists')[0]
    assert 'fourth.jpg' in found(folder, 'picture in neither list')[0]


def test_classes_that_are_rare_or_alike(voc, run, found, write_voc):
    write_voc(voc, 'more', voc_object(5, 6, 30, 40, name='Cat'))
    folder, _ = run('voc', voc)
    assert len(found(folder, 'class names that differ only in case')) == 2
    assert len(found(folder, 'class with few objects')) == 2
    assert run('voc', voc, out='strict', strict=True)[0].is_dir()  # only notes


def test_nothing_is_overwritten_and_the_source_stays(voc, run, tmp_path):
    before = {p.name: p.read_bytes() for p in voc.iterdir()}
    folder, _ = run('voc', voc)
    with pytest.raises(UsageError, match='exists: choose another'):
        run('voc', voc)
    assert {p.name: p.read_bytes() for p in voc.iterdir()} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]
    for wrong in (0, 1, 1.5):
        with pytest.raises(UsageError, match='choose a share between 0 and 1'):
            run('voc', voc, out='new', split=wrong)


@pytest.mark.parametrize('kind', ['voc', 'yolo', 'coco', 'masks', 'folders'])
def test_empty_and_missing_sources(kind, run, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UsageError):
        run(kind, tmp_path / 'empty')
    with pytest.raises(UsageError, match='there is no file or folder'):
        run(kind, tmp_path / 'gone')


coordinate = st.one_of(st.floats(-200, 200), st.sampled_from([0.0, 0.5, 48.0, 64.0, 1e8]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('ab'), *[coordinate] * 4), max_size=8))
def test_random_boxes(drawn):
    """What is left lies in the picture; everything that is dropped is listed."""
    sample = Sample(None, None, [Box(label, tuple(c)) for label, *c in drawn], size=SIZE)
    flaws = Flaws()
    check_boxes(OwnData('detection', ['a', 'b'], [sample]), flaws)
    for box in sample.boxes:
        x1, y1, x2, y2 = box.corners
        assert 0 <= x1 <= x2 - 1 <= SIZE[0] - 1 and 0 <= y1 <= y2 - 1 <= SIZE[1] - 1
    clipped = [f for f in flaws.found if f.kind == 'box partly outside the picture']
    assert len(sample.boxes) + len(flaws.found) - len(clipped) == len(drawn)


fragments = st.sampled_from(
    ['<object>', '</object>', '<name>cat</name>', '<bndbox>', '</bndbox>', '<xmin>', '</xmin>', '7']
    + [
        '<size>',
        '</size>',
        '&lt;',
        '&x;',
        '\x00',
        'é',
        voc_object(1, 2, 30, 40),
        '<?xml version="1.1"?>',
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(fragments, max_size=10), st.booleans())
def test_random_xml(tmp_path_factory, write_picture, parts, closed):
    """Any file is read, or named as a flaw."""
    folder = tmp_path_factory.mktemp('xml')
    write_picture(folder / 'a.jpg', (4, 4))
    text = '<annotation>' + ''.join(parts) + ('</annotation>' if closed else '')
    (folder / 'a.xml').write_text(text, encoding='utf-8')
    flaws = Flaws()
    data = read_voc(folder, flaws)
    assert len(data.samples) == 1 or {f.kind for f in flaws.found} >= {
        'annotation file cannot be read'
    }

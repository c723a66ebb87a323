"""Own data of every format are imported, and their flaws are found and handled by the rules."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image, ImageOps

from mmvitattn.datasets.importing import Backbone, ImportOptions, import_data
from mmvitattn.datasets.importing.checks import check_boxes, turn
from mmvitattn.datasets.importing.files import PictureIndex, split_of
from mmvitattn.datasets.importing.masks import read_masks
from mmvitattn.datasets.importing.recipe import box_statistics, choose_anchors
from mmvitattn.datasets.importing.records import NOTES, RULES, Box, Flaws, OwnData, Sample
from mmvitattn.datasets.importing.voc import read_voc
from mmvitattn.datasets.importing.writing import upright_mask
from mmvitattn.datasets.importing.yolo import read_yolo
from mmvitattn.datasets.layouts import LAYOUTS
from mmvitattn.errors import UsageError

LINGLO = Backbone('mmvitattn.LinGlo', 'b0', (32, 64, 160, 256), (4, 8, 16, 32))
SIZE = (64, 48)  # width and height of the pictures that are written here


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


def objects(folder, split):
    """Class and corners of each object, by picture; of a folder in COCO's layout."""
    content = json.loads((folder / f'annotations/instances_{split}2017.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    pictures = {i['id']: i['file_name'].removeprefix(f'{split}_') for i in content['images']}
    found = {name: [] for name in pictures.values()}
    for a in content['annotations']:
        x, y, w, h = a['bbox']
        box = (names[a['category_id']], x, y, x + w, y + h)
        found[pictures[a['image_id']]].append(box)
    return {name: sorted(boxes) for name, boxes in found.items()}


@pytest.mark.parametrize('kind', ['voc', 'yolo', 'coco'])
def test_boxes_and_classes_come_back(kind, run, labelled, small_shapes):
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
    assert cfg.model.bbox_head.anchor_generator.strides[:3] == [4, 8, 16]
    init_default_scope('mmdet')
    MODELS.build(cfg.model)
    assert 'exists: choose another' in run_tool('prepare_data', *options, status=2).stderr
    wrong = ('--backbone', 'linglo_b9', '--out', tmp_path / 'new')
    done = run_tool('prepare_data', *options, *wrong, status=2)
    assert "there is no backbone 'linglo_b9'" in done.stderr


@pytest.mark.parametrize('side', [12, 60, 400])
def test_anchors_reach_from_small_to_large_boxes(side):
    boxes = [Box('a', (0, 0, side, side)), Box('a', (0, 0, 2 * side, side))]
    samples = [Sample(None, None, boxes, size=(1000, 800), split=s) for s in ('train', 'val')]
    statistics = box_statistics(OwnData('detection', ['a'], samples), 'cpu')
    assert statistics.side == {12: 640, 60: 512, 400: 320}[side]
    anchors = choose_anchors(statistics, (8, 16, 32))
    assert anchors.smallest <= max(16, statistics.small) and anchors.strides[:3] == (8, 16, 32)
    assert anchors.largest >= min(statistics.large, 0.9 * statistics.side)


# Flaws


def write_picture(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)
    return path


def voc_object(x1, y1, x2, y2, name='cat', more=''):
    ends = zip(('xmin', 'ymin', 'xmax', 'ymax'), (x1, y1, x2, y2), strict=True)
    box = ''.join(f'<{tag}>{value}</{tag}>' for tag, value in ends)
    return f'<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>'


def write_voc(folder, stem, *parts, size=SIZE, filename=None, picture=True):
    if picture:
        write_picture(folder / f'{stem}.jpg')
    text = f'<filename>{filename or stem + ".jpg"}</filename>'
    text += f'<size><width>{size[0]}</width><height>{size[1]}</height></size>'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{stem}.xml').write_text(f'<annotation>{text}{"".join(parts)}</annotation>')


@pytest.fixture
def voc(tmp_path):
    """A folder of two good pictures, to which flaws are added."""
    for stem in ('good1', 'good2'):
        write_voc(tmp_path / 'voc', stem, voc_object(5, 6, 30, 40))
    return tmp_path / 'voc'


def found(folder, kind):
    """Lines of the report about a kind of flaw."""
    text = (folder / 'report.txt').read_text()
    lines = text.partition(f'\n{kind}: ')[2].splitlines()[1:]
    return [line for i, line in enumerate(lines) if all(x[:2] == '  ' for x in lines[: i + 1])]


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
def test_flaws_of_objects(kind, part, boxes, voc, run):
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


def test_flaws_of_files(voc, run):
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


def test_sizes_that_differ(voc, run):
    write_voc(voc, 'half', voc_object(3, 5, 10, 20), size=(32, 24))
    write_voc(voc, 'other', voc_object(3, 5, 10, 20), size=(100, 20))
    write_voc(voc, 'unknown', voc_object(3, 5, 10, 20), size=(0, 0))
    folder, _ = run('voc', voc)
    assert len(found(folder, 'size differs from the file')) == 2
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert every['half.jpg'] == [('cat', 4, 8, 20, 40)] and 'other.jpg' not in every
    assert every['unknown.jpg'] == [('cat', 2, 4, 10, 20)]


def test_difficult_objects_are_ignored(voc, run):
    write_voc(voc, 'hard', voc_object(3, 5, 10, 20, more='<difficult>1</difficult>'))
    folder, _ = run('voc', voc, split=0.5)
    content = [json.loads(p.read_text()) for p in (folder / 'annotations').iterdir()]
    flags = [a['iscrowd'] for part in content for a in part['annotations']]
    assert sorted(flags) == [0, 0, 1]


def test_equal_names_in_several_folders(tmp_path, run):
    for part in ('day', 'dusk', 'night'):  # the last one is for validation
        write_voc(tmp_path / 'voc' / part, 'a', voc_object(1, 1, 9, 9))
    folder, _ = run('voc', tmp_path / 'voc')
    assert 'imported as dusk__a.jpg' in found(folder, 'picture name is used twice')[0]
    every = {**objects(folder, 'train'), **objects(folder, 'val')}
    assert set(every) == {'a.jpg', 'dusk__a.jpg'} and all(map(len, every.values()))


@pytest.mark.parametrize('orientation', range(2, 9))
def test_exif_rotation(orientation, tmp_path, run):
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


def test_lists(voc, run, tmp_path):
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


def test_classes_that_are_rare_or_alike(voc, run):
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


# YOLO


def write_yolo(folder, lines, names=('cat', 'dog'), yaml=None):
    write_picture(folder / 'images/a.jpg')
    write_picture(folder / 'images/b.jpg')
    (folder / 'labels').mkdir()
    (folder / 'labels/a.txt').write_text('\n'.join(lines))
    (folder / 'labels/b.txt').write_text('0 0.5 0.5 0.5 0.5')
    (folder / 'data.yaml').write_text(yaml or f'train: images\nnames: {list(names)}\n')
    return folder


def test_lines_of_yolo(tmp_path):
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


def test_key_points_are_ignored(tmp_path):
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
def test_wrong_yaml(yaml, message, tmp_path):
    folder = write_yolo(tmp_path, [], yaml=yaml)
    with pytest.raises(UsageError, match=message):
        read_yolo(folder, Flaws())


def test_yolo_with_class_file(tmp_path):
    folder = write_yolo(tmp_path, ['1 0.5 0.5 0.25 0.5'])
    (folder / 'data.yaml').unlink()
    with pytest.raises(UsageError, match='neither a YAML file'):
        read_yolo(folder, Flaws())
    (folder / 'classes.txt').write_text('cat\ndog\n')
    assert read_yolo(folder, Flaws()).samples[0].boxes[0].label == 'dog'


# COCO


def test_objects_without_parts(tmp_path, run):
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


def test_broken_and_double_json(labelled, run, tmp_path):
    shutil.copytree(labelled / 'coco', tmp_path / 'src')
    path = tmp_path / 'src/annotations/instances_val2017.json'
    shutil.copy(path, tmp_path / 'src/annotations/instances_old_val2017.json')
    with pytest.raises(UsageError, match='both describe'):
        run('coco', tmp_path / 'src')
    (tmp_path / 'src/annotations/instances_old_val2017.json').unlink()
    path.write_text(path.read_text()[:1000])
    folder, _ = run('coco', tmp_path / 'src')
    assert 'is not valid JSON' in found(folder, 'annotation file cannot be read')[0]


# Masks


def write_masks(folder, *masks, suffix='.png'):
    for i, mask in enumerate(masks):
        write_picture(folder / f'images/{i}.jpg')
        (folder / 'masks').mkdir(exist_ok=True)
        mask = (
            mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, np.uint8))
        )
        mask.save(folder / f'masks/{i}{suffix}')
    return folder


def index_mask(*values):
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    for i, value in enumerate(values):
        mask[i * 8 : i * 8 + 8] = value
    return mask


def test_colour_masks(tmp_path, run):
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


def test_meanings_of_values(tmp_path):
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


def test_masks_that_do_not_fit(tmp_path, run):
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


# Random flaws

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
def test_random_xml(tmp_path_factory, parts, closed):
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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text('0123456789.- ena', max_size=30), max_size=5))
def test_random_lines_of_yolo(tmp_path_factory, lines):
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


def test_pictures_are_found_by_other_paths(tmp_path):
    for name in ('a/x.jpg', 'b/x.jpg', 'c/y.PNG', '.hidden/z.jpg'):
        write_picture(tmp_path / name)
    index = PictureIndex(tmp_path)
    assert index.find('/home/me/b/x.jpg') == tmp_path / 'b/x.jpg'
    assert index.find('D:\\pictures\\Y.png') == tmp_path / 'c/y.PNG'
    assert index.find('x.jpg', tmp_path / 'a') == tmp_path / 'a/x.jpg'
    assert index.find('x.jpg') is None  # either
    assert index.find('z.jpg') is None and index.find('') is None

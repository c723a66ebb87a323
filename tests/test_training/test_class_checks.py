"""Classes that do not fit are found before a training, and those that fit are not complained of."""

import copy
import functools
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

import mmvitattn  # noqa: F401
from mmvitattn.errors import UsageError
from mmvitattn.training.class_checks import check_built, check_class_names, read_categories

SHAPES = ('circle', 'cross', 'rectangle', 'ring', 'star', 'triangle')
DEMOS = dict(
    detector=('retinanet_linglo_b0_fpn_shapes', 'coco/'),
    segmenter=('semfpn_linglo_b0_shapes', 'ade/ADEChallengeData2016'),
    classifier=('linglo_b0_shapes', 'imagenet'),
)


read_config = functools.cache(Config.fromfile)


class Built:
    """What the checks use of a runner: config, model, and loops that are built when asked for."""

    def __init__(self, cfg, model):
        self.cfg, self.model = cfg, model
        init_default_scope(cfg.default_scope)

    def loop(self, split):
        dataset = DATASETS.build(self.cfg[f'{split}_dataloader'].dataset)
        return SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))

    train_loop = functools.cached_property(lambda self: self.loop('train'))
    val_loop = functools.cached_property(lambda self: self.loop('val'))


def head(name, num_classes, **more):
    """A model with one head, which has a name with dots."""
    model = part = nn.Module()
    for word in name.split('.'):
        part.add_module(word, nn.Module())
        part = getattr(part, word)
    part.num_classes = num_classes
    for key, value in more.items():
        setattr(part, key, value)
    return model


@pytest.fixture
def demo(root, small_shapes):
    """The config of a demo; ``change`` is applied to the data set of each split."""

    def load(task, change=lambda dataset: dataset):
        name, folder = DEMOS[task]
        cfg = copy.deepcopy(read_config(root / f'configs/demo/{name}.py'))
        for split in ('train', 'val'):
            dataset = cfg[f'{split}_dataloader'].dataset
            dataset.data_root = str(small_shapes / folder)
            cfg[f'{split}_dataloader'].dataset = ConfigDict(change(dataset))
        return cfg

    return load


@pytest.fixture(scope='module')
def shared_data(root, small_shapes):
    """The detector's demo, with data sets that are built once."""
    cfg = Config.fromfile(root / 'configs/demo/retinanet_linglo_b0_fpn_shapes.py')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(small_shapes / 'coco')
    return Built(cfg, None)


@pytest.fixture
def shared(shared_data):
    init_default_scope('mmdet')
    return shared_data


def with_classes(*classes):
    def change(dataset):
        dataset.metainfo = dict(classes=classes)
        return dataset

    return change


def problem(cfg, model=None):
    """The message of the check; fails if there is none."""
    with pytest.raises(UsageError) as caught:
        check_class_names(cfg, ('train', 'val'))
        check_built(Built(cfg, model or head('bbox_head', 6)))
    return str(caught.value)


def passes(cfg, model):
    check_class_names(cfg, ('train', 'val'))
    return check_built(Built(cfg, model))


@pytest.mark.parametrize('task', DEMOS)
def test_the_demos_pass(task, demo):
    cfg = demo(task)
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    assert set(passes(cfg, MODELS.build(cfg.model))) == {'train', 'val'}


@pytest.mark.parametrize('wrong', [('Circle', *SHAPES[1:]), tuple(map(str.upper, SHAPES))])
def test_wrong_case(wrong, demo):
    """Also if no class is right, where mmdet only says 'need at least one array'."""
    message = problem(demo('detector', with_classes(*wrong)))
    assert f'has no class {wrong[0]!r}' in message and "did you mean 'circle'?" in message
    assert 'instances_train2017.json' in message and 'metainfo=dict(classes=...)' in message


def test_a_string_of_classes(demo):
    def change(dataset):
        dataset.metainfo = dict(classes='circle')
        return dataset

    message = problem(demo('detector', change))
    assert message.startswith("train_dataloader: metainfo.classes is the string 'circle'")
    assert "('circle',)" in message
    message = problem(demo('classifier', lambda d: dict(d, classes='circle')))
    assert "classes is the string 'circle'" in message


@pytest.mark.parametrize(('classes', 'outputs'), [(SHAPES, 5), (('circle', 'cross'), 80)])
def test_outputs_of_heads(classes, outputs, demo):
    runner = Built(demo('detector', with_classes(*classes)), head('bbox_head', len(classes)))
    check_built(runner)
    message = outputs_problem(runner, head('bbox_head', outputs))
    expected = f'model.bbox_head.num_classes is {outputs}, but the classes of train_dataloader are'
    assert f'{expected} {len(classes)}: {classes[0]!r}' in message
    assert f'Set num_classes={len(classes)}' in message


def outputs_problem(runner, model):
    """The message for another model with the same data, which are built once."""
    runner.model = model
    with pytest.raises(UsageError) as caught:
        check_built(runner)
    return str(caught.value)


@pytest.mark.parametrize(
    ('model', 'setting'),
    [
        (head('module.roi_head.mask_head', 80), 'model.roi_head.mask_head.num_classes is 80'),
        (head('roi_head.bbox_head.2', 80), 'model.roi_head.bbox_head.2.num_classes is 80'),
        (dict(student=dict(head=[dict(num_classes=9)])), 'student.head.0.num_classes is 9'),
        (dict(rpn_head=dict(num_classes=1), bbox_head=dict(num_classes=6)), None),
        (head('rpn_head', 1), None),
        (head('roi_head.semantic_head', 183), None),
        (head('roi_head.mask_head', 1, class_agnostic=True), None),
        (head('backbone', 1000), None),
    ],
)
def test_heads_of_other_kinds(model, setting, shared):
    if setting is None:
        shared.model = model
        check_built(shared)
    else:
        assert setting in outputs_problem(shared, model)


def test_mask_rcnn_is_checked_in_all_its_heads(root, shared):
    cfg = Config.fromfile(root / 'configs/mask-rcnn_linglo_b2_fpn_1x_coco.py')
    cfg.model.backbone = dict(type='mmvitattn.LinGlo', arch='b0')
    cfg.model.neck.in_channels = [32, 64, 160, 256]
    model = MODELS.build(cfg.model)
    assert 'roi_head.bbox_head.num_classes is 80' in outputs_problem(shared, model)
    model.roi_head.bbox_head.num_classes = 6
    assert 'roi_head.mask_head.num_classes is 80' in outputs_problem(shared, model)
    model.roi_head.mask_head.num_classes = 6
    shared.model = model
    check_built(shared)


def test_order_and_missing_classes(demo):
    message = problem(demo('detector', with_classes(*SHAPES[::-1])))
    assert 'numbers the classes in the order of' in message
    assert f'write {", ".join(map(repr, SHAPES))}' in message
    message = problem(demo('detector', with_classes(*SHAPES, 'hexagon')))
    assert "has no class 'hexagon'" in message
    assert "has 'star' twice" in problem(demo('detector', with_classes(*SHAPES, 'star')))
    assert 'which is not a name' in problem(demo('detector', with_classes(1, 2)))


def test_splits_with_different_classes(demo):
    cfg = demo('detector')
    cfg.val_dataloader.dataset.metainfo = dict(classes=SHAPES[:5])
    assert 'have different classes' in problem(cfg)


WRAPPERS = dict(
    repeated=lambda d: dict(type='RepeatDataset', times=2, dataset=d),
    balanced=lambda d: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=d),
    joined=lambda d: dict(type='ConcatDataset', datasets=[d, d]),
    nested=lambda d: dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[d, d])
    ),
)


@pytest.mark.parametrize(
    ('task', 'name'),
    [*(('detector', name) for name in WRAPPERS), ('segmenter', 'nested'), ('classifier', 'nested')],
)
def test_wrapped_data_sets(task, name, demo):
    runner = Built(demo(task, WRAPPERS[name]), head('head', 12 if task == 'segmenter' else 6))
    found = check_built(runner)
    assert len(found['train']) == (1 if name in ('repeated', 'balanced') else 2)
    assert outputs_problem(runner, head('head', 4)).startswith('model.head.num_classes is 4')


def test_wrong_names_inside_a_wrapper(demo):
    wrong = with_classes('Circle', *SHAPES[1:])
    cfg = demo('detector', lambda d: WRAPPERS['nested'](wrong(d)))
    assert "no class 'Circle'" in problem(cfg)
    cfg = demo('detector', lambda d: WRAPPERS['nested'](with_classes(*SHAPES[::-1])(d)))
    assert 'in the order of' in problem(cfg)


def test_nothing_left_after_filtering(demo):
    def change(dataset):
        dataset.filter_cfg = dict(filter_empty_gt=True, min_size=10_000)
        return dataset

    message = problem(demo('detector', change))
    assert 'no sample is left of annotations/instances_train2017.json' in message
    assert 'min_size' in message


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('{"images": [', 'is not valid JSON: Expecting value: line 1'),
        ('[]', 'is not an annotation file in COCO format'),
        ('{"images": [], "annotations": []}', 'has no categories'),
        (json.dumps(dict(images=[], annotations=[], categories=[])), 'has no class'),
    ],
)
def test_broken_annotation_files(text, reason, demo, tmp_path):
    (tmp_path / 'broken.json').write_text(text)
    cfg = demo('detector', lambda d: dict(d, ann_file=str(tmp_path / 'broken.json')))
    message = problem(cfg)
    assert 'broken.json' in message and reason in message


def test_an_error_without_explanation_keeps_its_traceback(demo, capsys):
    message = problem(demo('detector', lambda d: dict(d, nonsense=1)))
    assert message.startswith('train_dataloader could not be built: TypeError')
    assert 'Traceback' in capsys.readouterr().err


def test_mask_values(demo, small_shapes, tmp_path):
    model = head('decode_head', 11)
    classes = demo('segmenter').train_dataloader.dataset.metainfo.classes
    message = problem(demo('segmenter', with_classes(*classes[:11])), model)
    assert 'has the value 12, but 11 classes are the values 1 to 11' in message
    assert '0 is ignored' in message

    def from_zero(dataset):
        dataset.reduce_zero_label = False
        return dataset

    message = problem(demo('segmenter', from_zero), head('decode_head', 12))
    assert 'reduce_zero_label=True if 0 is no class' in message
    folder = tmp_path / 'masks'
    folder.mkdir()
    for path in sorted((small_shapes / 'ade/ADEChallengeData2016/annotations/training').iterdir()):
        cv2.imwrite(str(folder / path.name), np.zeros((128, 128, 3), np.uint8))

    def coloured(dataset):
        dataset.data_prefix.seg_map_path = str(folder)
        return dataset

    cfg = demo('segmenter')
    cfg.train_dataloader.dataset = coloured(cfg.train_dataloader.dataset)
    assert 'colours instead of class indices' in problem(cfg, head('decode_head', 12))
    min(folder.iterdir()).unlink()
    assert ' has no mask ' in problem(cfg, head('decode_head', 12))


def test_class_folders(demo, tmp_path):
    message = problem(demo('classifier', with_classes(*SHAPES[::-1])), head('head', 6))
    assert 'numbered in the order of their names' in message and "write 'circle'" in message
    passes(demo('classifier', with_classes(*map(str.title, SHAPES))), head('head', 6))
    (tmp_path / 'labels.txt').write_text('circle/000000.jpg 6\n')
    change = dict(ann_file=str(tmp_path / 'labels.txt'), metainfo=dict(classes=SHAPES))
    message = problem(demo('classifier', lambda d: dict(d, **change)), head('head', 6))
    assert 'has the label 6, but 6 classes are 0 to 5' in message


def test_categories_are_found_in_any_place(tmp_path):
    path = tmp_path / 'a.json'
    categories = [dict(id=7, name='Ünë', skeleton=[[1, 2]]), dict(id=3, name='b]"')]
    text = dict(info=dict(about='the "categories": [ of'), categories=categories, images=[{}] * 99)
    path.write_text(json.dumps(text, ensure_ascii=False), encoding='utf-8')
    assert read_categories(path) == {7: 'Ünë', 3: 'b]"'}
    path.write_text(json.dumps({'images': []}))
    with pytest.raises(UsageError, match='has no categories'):
        read_categories(path)


def test_real_coco_passes(root, real_data):
    cfg = Config.fromfile(root / 'configs/retinanet_linglo_b0_fpn_1x_coco.py')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(real_data / 'coco')
    passes(cfg, head('bbox_head', 80))


def test_the_tool_ends_with_status_2(run_tool, small_shapes, tmp_path):
    demo, options = 'configs/demo/retinanet_linglo_b0_fpn_shapes.py', ('--work-dir', tmp_path)
    options = (*options, '--data-root', small_shapes / 'coco')
    wrong = 'model.bbox_head.num_classes=80'
    done = run_tool('train', demo, *options, '--cfg-options', wrong, status=2)
    assert 'error: model.bbox_head.num_classes is 80, but' in done.stderr
    assert 'Traceback' not in done.stderr

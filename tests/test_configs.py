"""The configs' form: short deltas that state data, schedule and batch, and fit their backbones."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmvitattn.datasets import shapes
from mmvitattn.models import LinGlo, QnAViT, SAGViT

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def each(*patterns):
    paths = sorted(path for pattern in patterns for path in CONFIGS.glob(pattern))
    assert paths
    return [pytest.param(p, id=str(p.relative_to(CONFIGS).with_suffix(''))) for p in paths]


@pytest.mark.parametrize('path', each('*.py', 'demo/*.py', 'ablations/*.py'))
def test_data_schedule_and_batch_are_stated(path):
    cfg = Config.fromfile(path)
    needed = {
        *('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator'),
        *('train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler', 'data_layout'),
        *('default_hooks', 'custom_imports', 'visualizer', 'auto_scale_lr'),
    }
    assert needed <= set(cfg.keys())
    assert cfg.default_scope in ('mmdet', 'mmseg', 'mmpretrain')
    assert cfg.auto_scale_lr.enable is False
    named = re.search(r'_(\d+)xb\d', path.stem)
    processes = int(named[1]) if named else 1 if path.parent.name == 'demo' else 8
    assert cfg.auto_scale_lr.base_batch_size == processes * cfg.train_dataloader.batch_size
    if named:
        batch, epochs = re.search(r'_\d+xb(\d+)(?:-(?:ft-)?(\d+)e)?_', path.stem).groups()
        assert int(batch) == cfg.train_dataloader.batch_size
        assert not epochs or int(epochs) == cfg.train_cfg.max_epochs
    if path.parent.name != 'demo':
        assert len(path.read_text().splitlines()) <= 30


@pytest.mark.parametrize('path', each('*_coco.py', '*_ade20k.py'))
def test_heads_take_what_the_backbone_gives(path):
    """Channels and strides of every dense config are those of its backbone."""
    cfg = Config.fromfile(path)
    settings = cfg.model.backbone.to_dict()
    families = {cls.__name__: cls for cls in (LinGlo, QnAViT, SAGViT)}
    settings.pop('init_cfg')
    taker = cfg.model.get('neck') or cfg.model.get('decode_head') or cfg.model.panoptic_head
    family = settings.pop('type')
    if family == 'ResNet':
        assert (settings['depth'], taker.in_channels) == (50, [2048])
        return
    info = families[family.split('.')[1]](**settings).feature_info
    assert list(taker.in_channels) == info.channels()
    strides = info.reduction()
    if cfg.model.type == 'RetinaNet':
        anchors = cfg.model.bbox_head.anchor_generator.strides
        assert anchors[: len(strides)] == strides
        assert all(b == 2 * a for a, b in zip(anchors, anchors[1:], strict=False))
    elif cfg.model.type == 'MaskRCNN':
        assert cfg.model.rpn_head.anchor_generator.strides == [*strides, 2 * strides[-1]]
        for kind in ('bbox', 'mask'):
            assert cfg.model.roi_head[f'{kind}_roi_extractor'].featmap_strides == strides
    elif cfg.model.type == 'CascadeRCNN':
        assert cfg.model.rpn_head.anchor_generator.strides[: len(strides)] == strides
        for kind in ('bbox', 'mask'):
            assert cfg.model.roi_head[f'{kind}_roi_extractor'].featmap_strides == strides
    elif cfg.model.type == 'Mask2Former':
        assert cfg.model.panoptic_head.strides == strides
    elif cfg.model.get('auxiliary_head'):
        index = cfg.model.auxiliary_head.in_index
        assert cfg.model.auxiliary_head.in_channels == info.channels()[index]
        assert strides[index] == 16
    elif cfg.model.type == 'EncoderDecoder':
        assert cfg.model.decode_head.feature_strides == strides


def test_augmentation_of_the_families_differs_where_it_should():
    """The pieces that the data sets share come together as one pipeline each."""
    base = CONFIGS / '_base_/datasets'
    names = ('imagenet_224_deit', 'imagenet_224_qna', 'imagenet_224_sag', 'cifar10_deit')
    deit, qna, sag, cifar10 = (Config.fromfile(base / f'{name}.py') for name in names)
    assert [*qna.train_pipeline[:4], *qna.train_pipeline[6:]] == deit.train_pipeline
    for cfg, pipeline in ((qna, qna.train_pipeline), (sag, deit.train_pipeline)):
        assert cfg.train_dataloader.dataset.pipeline == pipeline
        assert cfg.train_dataloader.sampler == dict(type='DefaultSampler', shuffle=True)
    cifar100 = Config.fromfile(base / 'cifar100_deit.py')
    shared = ('RandomCrop', 'RandomFlip', 'RandAugment', 'RandomErasing', 'PackInputs')
    for cfg in (cifar10, cifar100):
        pipeline = cfg.train_dataloader.dataset.pipeline
        assert tuple(step.type for step in pipeline) == shared
    assert cifar10.train_pipeline[2].policies == deit.train_pipeline[3].policies
    assert cifar100.data_preprocessor.mean == cifar100.train_pipeline[3].fill_color


def test_colour_jitter_of_qna_keeps_the_picture():
    """The transforms come from several toolboxes; grey values weigh the channels as usual."""
    from mmpretrain.registry import TRANSFORMS

    init_default_scope('mmpretrain')
    jitter, grey = Config.fromfile(CONFIGS / '_base_/datasets/imagenet_224_qna.py').train_pipeline[
        4:6
    ]
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    jittered = TRANSFORMS.build({**jitter, 'prob': 1.0})(dict(img=image.copy()))['img']
    assert jittered.shape == image.shape and jittered.dtype == np.uint8
    assert not np.array_equal(jittered, image)
    shades = TRANSFORMS.build({**grey, 'prob': 1.0})(dict(img=image.copy()))['img']
    assert shades.dtype == np.uint8
    expected = image @ np.array([0.114, 0.587, 0.299])  # blue, green, red
    assert abs(shades - expected[..., None]).max() <= 1


def test_demo_classes_are_those_of_the_embedded_data_set():
    detection = Config.fromfile(CONFIGS / '_base_/datasets/shapes_detection.py')
    assert tuple(detection.metainfo.classes) == shapes.SHAPE_CLASSES
    segmentation = Config.fromfile(CONFIGS / '_base_/datasets/shapes_segmentation.py')
    assert tuple(segmentation.metainfo.classes) == shapes.SEGMENTATION_CLASSES
    palette = tuple(tuple(colour) for colour in segmentation.metainfo.palette)
    assert palette == tuple(tuple(colour) for colour in shapes.SEGMENTATION_PALETTE)


def test_every_ablation_is_a_row():
    """The rows of ``ablations/*.yml`` name configs that exist, and leave none out."""
    folder, named = CONFIGS / 'ablations', set()
    for path in folder.glob('*.yml'):
        for rows in yaml.safe_load(path.read_text())['sets'].values():
            named |= {(folder / row['config']).resolve() for row in rows['rows']}
    assert [str(path) for path in named if not path.is_file()] == []
    assert set(folder.glob('*.py')) <= named

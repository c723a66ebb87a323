"""Builds a predictor from a config and a checkpoint, for any of the three tasks.

The toolboxes' inferencers build model, pipeline and visualizer. Checkpoint, class names and files
are not left to them: they would take COCO's or Cityscapes' classes where none are known, warn where
weights are missing, hold whole folders in memory and name results by base names alone.
"""

import argparse
import colorsys
import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from . import preflight
from .build import construct_model, read_model_config
from .cli import add_trust_argument
from .errors import UsageError
from .predictors import (
    ClassificationPredictor,
    DetectionPredictor,
    Predictor,
    SegmentationPredictor,
)
from .weights import load_backbone_weights, load_model_weights

TASKS = {
    'mmdet': DetectionPredictor,
    'mmseg': SegmentationPredictor,
    'mmpretrain': ClassificationPredictor,
}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every tool that predicts."""
    parser.add_argument('--device', help='e.g. cpu or cuda:0; default a GPU where there is one')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings that override the config: key=value, nested keys with dots',
    )
    add_trust_argument(parser)


def read_config(path: str | Path, options: Mapping | None = None) -> Config:
    """Reads the config of a model to predict with.

    Args:
        path: the file.
        options: settings that override it.

    Returns:
        The config.

    Raises:
        UsageError: if the file is not there, or is no config of one of the three tasks.
    """
    cfg = read_model_config(path)
    cfg.merge_from_dict(dict(options or {}))
    if cfg.get('default_scope') not in TASKS or 'test_dataloader' not in cfg:
        raise UsageError(
            f'{path} needs a test_dataloader and a default_scope, one of {", ".join(TASKS)}'
        )
    return cfg


def check_device(device: str | None) -> str:
    """The device to run on.

    Args:
        device: e.g. 'cpu' or 'cuda:0'; ``None`` for a GPU where there is one.

    Returns:
        Its name.

    Raises:
        UsageError: if there is no such device.
    """
    if device is None:
        return get_device()
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f'--device {device}: there is no such device ({reason})') from None
    return device


def build_predictor(
    cfg: Config,
    checkpoint: Mapping | None,
    source: str = 'the checkpoint',
    device: str = 'cpu',
    backbone_only: bool = False,
) -> Predictor:
    """Builds the model with its weights, its test pipeline and what draws its predictions.

    Args:
        cfg: the config, of :func:`read_config`.
        checkpoint: what the file holds; ``None`` leaves the weights random.
        source: name of the file, for messages.
        device: where the model runs.
        backbone_only: load the backbone's weights alone, also from a backbone's own checkpoint.

    Returns:
        The predictor, its model in evaluation mode.

    Raises:
        UsageError: if the checkpoint does not fit the config.
    """
    cfg = copy.deepcopy(cfg)
    preflight.drop_pretrained(cfg)
    cfg.model.backbone.pop('deploy', None)  # the checkpoint tells
    init_default_scope(cfg.default_scope)
    meta = dataset_meta(cfg, checkpoint or {})

    def load(model: nn.Module) -> None:
        if checkpoint is None:
            model.init_weights()
        elif backbone_only:
            load_backbone_weights(model.backbone, checkpoint, source)
        else:
            load_model_weights(model, checkpoint, source)
        model.dataset_meta = dict(meta)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        inferencer = _INFERENCERS[cfg.default_scope](cfg, load, device)
    if meta['classes'] and getattr(inferencer, 'visualizer', None) is not None:
        inferencer.visualizer.dataset_meta = dict(meta)
    return TASKS[cfg.default_scope](inferencer, cfg, meta['classes'])


def dataset_meta(cfg: Config, checkpoint: Mapping) -> dict[str, Any]:
    """Class names and colours.

    Args:
        cfg: the config, whose data set knows them if the checkpoint does not.
        checkpoint: what the file holds; training writes ``meta['dataset_meta']``.

    Returns:
        ``classes``, empty where nobody knows them, and ``palette``, one RGB colour each.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        known = dict(getattr(registry.get(dataset['type']), 'METAINFO', {}))
    known.update(dataset.get('metainfo') or {})
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    saved = json.loads(saved) if isinstance(saved, str) else saved
    known.update({key.lower(): value for key, value in saved.items()})
    classes = list(known.get('classes') or ())
    palette = [tuple(colour) for colour in known.get('palette') or ()]
    if len(palette) != len(classes):  # left from the data set's own classes
        palette = _palette(len(classes))
    return dict(classes=classes, palette=palette)


def _palette(number: int) -> list[tuple[int, ...]]:
    """Hues that differ most between neighbours."""
    hues = [(i * 0.618034) % 1 for i in range(number)]
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 0.9)) for hue in hues]


def _detection_inferencer(cfg: Config, load, device: str) -> Any:
    from mmdet.apis import DetInferencer

    class Inferencer(DetInferencer):
        def _load_weights_to_model(self, model: nn.Module, *_: Any) -> None:
            load(model)

    cfg.setdefault('visualizer', dict(type='DetLocalVisualizer')).pop('vis_backends', None)
    return Inferencer(cfg, device=device, show_progress=False)


def _segmentation_inferencer(cfg: Config, load, device: str) -> Any:
    from mmseg.apis import MMSegInferencer

    class Inferencer(MMSegInferencer):
        def _load_weights_to_model(self, model: nn.Module, *_: Any) -> None:
            load(model)

    cfg.setdefault('visualizer', dict(type='SegLocalVisualizer')).pop('vis_backends', None)
    return Inferencer(cfg, device=device)


def _classification_inferencer(cfg: Config, load, device: str) -> Any:
    from mmpretrain.apis import ImageClassificationInferencer

    # From a model that is built, it looks nothing up.
    model = construct_model(cfg)
    load(model)
    model._config, model._dataset_meta = cfg, model.dataset_meta
    return ImageClassificationInferencer(model, pretrained=False, device=device)


_INFERENCERS = {
    'mmdet': _detection_inferencer,
    'mmseg': _segmentation_inferencer,
    'mmpretrain': _classification_inferencer,
}

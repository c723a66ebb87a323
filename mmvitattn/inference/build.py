"""Models and predictors of configs, with the weights of a checkpoint or random ones.

The toolboxes' own inferencers assume the classes of COCO or Cityscapes if none are known, and only
warn about missing weights; here the former stay unnamed, and the latter are an error.
"""

import colorsys
import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ..checkpoint import load_backbone_weights, load_model_weights
from ..checkpoint.pretrained import drop_pretrained
from ..errors import UsageError
from .predictors import (
    ClassificationPredictor,
    DetectionPredictor,
    Predictor,
    SegmentationPredictor,
)

TASKS: dict[str, type[Predictor]] = {
    'mmdet': DetectionPredictor,
    'mmseg': SegmentationPredictor,
    'mmpretrain': ClassificationPredictor,
}


def read_model_config(path: str | Path) -> Config:
    """Reads a config that has a model.

    Returns:
        The config.

    Raises:
        UsageError: if the file is missing, or has no model with a backbone.
    """
    if not Path(path).is_file():
        raise UsageError(f'there is no config {path}; see configs/')
    cfg = Config.fromfile(path)
    if 'backbone' not in cfg.get('model', {}):
        raise UsageError(f'{path} has no model with a backbone')
    return cfg


def construct_model(cfg: Config) -> nn.Module:
    """Builds the model of a config without initialising its weights.

    Under ``with torch.device('meta')`` nothing is computed or stored.

    Args:
        cfg: the config; its pretrained weights are ignored.

    Returns:
        The model in evaluation mode.
    """
    cfg = copy.deepcopy(cfg)
    drop_pretrained(cfg)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if 'default_scope' in cfg:
        init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).eval()


def build_model(
    cfg: Config,
    checkpoint: Mapping | None = None,
    source: str = 'the checkpoint',
    backbone_only: bool = False,
) -> Any:
    """Builds the model of a config with its weights, on the CPU.

    Args:
        cfg: the config.
        checkpoint: content of the checkpoint, which also determines whether the backbone has the
            deploy form; ``None`` for random weights.
        source: name of the file, for the message.
        backbone_only: load only the backbone's weights, also from a checkpoint of a backbone.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint does not fit the config.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.pop('deploy', None)
    model: Any = construct_model(cfg)
    if checkpoint is None:
        model.init_weights()
    elif backbone_only:
        load_backbone_weights(model.backbone, checkpoint, source)
    else:
        load_model_weights(model, checkpoint, source)
    return model


def read_config(path: str | Path, options: Mapping | None = None) -> Config:
    """Reads the config of a model to predict with.

    Args:
        path: the file.
        options: settings that override it.

    Returns:
        The config.

    Raises:
        UsageError: if the file is missing, or is not a config of one of the three tasks.
    """
    cfg = read_model_config(path)
    cfg.merge_from_dict(dict(options or {}))
    if cfg.get('default_scope') not in TASKS or 'test_dataloader' not in cfg:
        raise UsageError(
            f'{path} needs a test_dataloader and a default_scope, one of {", ".join(TASKS)}'
        )
    return cfg


def check_device(device: str | None) -> str:
    """Checks that there is a device to run on.

    Args:
        device: e.g. 'cpu' or 'cuda:0'; ``None`` for a GPU if there is one, else the CPU.

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
    """Builds the model with its weights, its test pipeline and its visualizer.

    Args:
        cfg: the config, from :func:`read_config`.
        checkpoint: content of the checkpoint; ``None`` for random weights.
        source: name of the file, for messages.
        device: where the model runs.
        backbone_only: load only the backbone's weights, also from a checkpoint of a backbone.

    Returns:
        The predictor, its model in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint does not fit the config.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = build_model(cfg, checkpoint, source, backbone_only)
        # Normalisation over processes needs a GPU, also in evaluation mode.
        model = revert_sync_batchnorm(model).to(device)
        return TASKS[cfg.default_scope](model, cfg, dataset_meta(cfg, checkpoint or {}))


def dataset_meta(cfg: Config, checkpoint: Mapping) -> dict[str, Any]:
    """Class names and colours.

    Args:
        cfg: the config, whose data set defines them if the checkpoint does not.
        checkpoint: content of the checkpoint; training writes ``meta['dataset_meta']``.

    Returns:
        ``classes``, empty if they are not known, and ``palette``, an RGB colour for each.
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
    if len(palette) != len(classes):  # the palette of the data set's own classes
        palette = _palette(len(classes))
    return dict(classes=classes, palette=palette)


def _palette(number: int) -> list[tuple[int, ...]]:
    """Colours whose hues differ most between neighbours."""
    hues = [(i * 0.618034) % 1 for i in range(number)]
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 0.9)) for hue in hues]

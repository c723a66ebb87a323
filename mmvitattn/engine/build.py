"""Models of configs, with their weights or bare, for the tools that neither train nor evaluate."""

import copy
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from . import preflight
from .errors import UsageError
from .weights import load_model_weights


def read_model_config(path: str | Path) -> Config:
    """Reads a config that has a model.

    Args:
        path: the file.

    Returns:
        The config.

    Raises:
        UsageError: if the file is not there, or has no model with a backbone.
    """
    if not Path(path).is_file():
        raise UsageError(f'there is no config {path}; see configs/')
    cfg = Config.fromfile(path)
    if 'backbone' not in cfg.get('model', {}):
        raise UsageError(f'{path} has no model with a backbone')
    return cfg


def construct_model(cfg: Config) -> nn.Module:
    """The model of a config as its constructors leave it: without its initial weights.

    Under ``with torch.device('meta')`` nothing is computed or stored.

    Args:
        cfg: the config; its pretrained weights are left out.

    Returns:
        The model in evaluation mode.
    """
    cfg = copy.deepcopy(cfg)
    preflight.drop_pretrained(cfg)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if 'default_scope' in cfg:
        init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).eval()


def build_model(
    cfg: Config, checkpoint: Mapping | None = None, source: str = 'the checkpoint'
) -> nn.Module:
    """The model of a config in evaluation mode, on the CPU.

    Args:
        cfg: the config.
        checkpoint: what the file with the weights holds, which also tells whether the backbone has
            the deploy form; ``None`` for random weights.
        source: name of the file, for the message.

    Returns:
        The model.

    Raises:
        UsageError: if the checkpoint does not fit the config.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.pop('deploy', None)
    model = construct_model(cfg)
    if checkpoint is None:
        model.init_weights()
    else:
        load_model_weights(model, checkpoint, source)
    return model

"""All backbones by name, for plain PyTorch programs without configs and runners."""

import difflib
import fnmatch
from pathlib import Path
from typing import Any

from . import models  # noqa: F401  (registers the families)
from .checkpoint import find_published, load_backbone_weights, load_checkpoint
from .models.base import PyramidBackbone
from .official import load_official
from .registry import MODELS


def families() -> dict[str, type[PyramidBackbone]]:
    """The registered families of backbones, by the name of their module."""
    return {
        cls.__module__.rpartition('.')[2]: cls
        for cls in MODELS.module_dict.values()
        if isinstance(cls, type) and issubclass(cls, PyramidBackbone)
    }


def list_backbones(filter: str = '') -> list[str]:
    """Lists the names that :func:`build_backbone` accepts: a family and one of its archs.

    Args:
        filter: part of a name, or a pattern with ``*`` and ``?``.

    Returns:
        The names, ordered by family, e.g. ``'linglo_b0'``.
    """
    pattern = filter if any(c in filter for c in '*?[') else f'*{filter}*'
    return [name for name in _archs() if fnmatch.fnmatchcase(name, pattern)]


def build_backbone(
    name: str, pretrained: str | Path | None = None, **options: Any
) -> PyramidBackbone:
    """Builds a backbone, ready to use.

    Args:
        name: one of :func:`list_backbones`.
        pretrained: checkpoint of the backbone, or of a model that contains it. Output norms that
            are missing, as in a classifier's checkpoint, keep their initial values. The backbone
            is switched to the deploy form if the checkpoint has that form. 'official' stands for
            the weights that the authors published (:mod:`mmvitattn.official`), which must have
            been downloaded; they need not be converted. 'tiny-imagenet' stands for those that this
            package contains (``linglo_b0`` only).
        options: options of the backbone's class: ``out_indices``, ``in_channels``,
            ``frozen_stages``, ``drop_path_rate`` ... An ``init_cfg`` needs MMEngine and is
            applied immediately.

    Returns:
        The backbone, in training mode.

    Raises:
        ValueError: for an unknown name, or options that do not fit.
        CheckpointError: if the checkpoint cannot be read, or does not fit.

    Example:
        >>> backbone = build_backbone('linglo_b0', out_indices=(1, 2, 3))
        >>> backbone.feature_info.channels()
        [64, 160, 256]
    """
    archs = _archs()
    if name not in archs:
        close = difflib.get_close_matches(str(name), archs, n=3, cutoff=0.5)
        hint = f'did you mean {", ".join(close)}?' if close else 'see mmvitattn.list_backbones()'
        raise ValueError(f'there is no backbone {name!r}; {hint}')
    if 'arch' in options:
        raise ValueError(
            f'the name {name!r} includes the arch; for a custom one use the class: '
            f'mmvitattn.models.{archs[name][0].__name__}(arch=...)'
        )
    family, arch = archs[name]
    options['arch'] = arch
    if pretrained is not None:
        return _build_pretrained(name, options, pretrained)
    backbone = family(**options)
    if options.get('init_cfg') is not None:
        backbone.init_weights()
    return backbone


def _build_pretrained(name: str, options: dict[str, Any], source: str | Path) -> PyramidBackbone:
    if options.get('init_cfg') is not None:
        raise ValueError('give pretrained or init_cfg, not both')
    if source == 'official':
        checkpoint, source = load_official(name)
    else:
        source = find_published(name, str(source)) or source
        checkpoint = load_checkpoint(source)
    deploy = options.pop('deploy', False)  # the checkpoint may have either form
    backbone = _archs()[name][0](**options)
    load_backbone_weights(backbone, checkpoint, str(source))
    if deploy:
        backbone.switch_to_deploy()
    return backbone


def _archs() -> dict[str, tuple[type[Any], str]]:
    """Family and arch of each flat name."""
    return {
        f'{family}_{arch}': (cls, arch)
        for family, cls in families().items()
        for arch in cls.arch_zoo
    }

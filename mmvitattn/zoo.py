"""All backbones by name, for plain PyTorch programs without config and runner."""

import difflib
import fnmatch
from pathlib import Path
from typing import Any

from . import models  # noqa: F401  (registers the families)
from .models.base import PyramidBackbone
from .registry import MODELS


def families() -> dict[str, type[PyramidBackbone]]:
    """The registered backbone classes, by the name of the module that defines each."""
    return {
        cls.__module__.rpartition('.')[2]: cls
        for cls in MODELS.module_dict.values()
        if isinstance(cls, type) and issubclass(cls, PyramidBackbone)
    }


def list_backbones(filter: str = '') -> list[str]:
    """Names for :func:`build_backbone`, which consist of a family and one of its archs.

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
    """Builds a backbone and loads its weights.

    Args:
        name: one of :func:`list_backbones`.
        pretrained: checkpoint of the backbone or of a model with it, from training, a converter or
            ``publish_model.py``. Output norms that it lacks, e.g. of the first stages in the
            checkpoint of a classifier, keep their start values. The backbone is folded if the
            checkpoint is.
        options: options of the backbone's class: ``out_indices``, ``in_channels``,
            ``frozen_stages``, ``drop_path_rate`` ... An ``init_cfg`` is applied at once.

    Returns:
        The backbone, in training mode.

    Raises:
        ValueError: for an unknown name or wrong options.
        UsageError: if the checkpoint cannot be read or does not fit.

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
            f'the name {name!r} contains the arch; for a custom one use the class: '
            f'mmvitattn.models.{archs[name][0].__name__}(arch=...)'
        )
    family, arch = archs[name]
    if pretrained is not None:
        return _build_pretrained(family, dict(options, arch=arch), pretrained)
    backbone = family(arch=arch, **options)
    if options.get('init_cfg') is not None:
        backbone.init_weights()
    return backbone


def _build_pretrained(
    family: type[Any], options: dict[str, Any], source: str | Path
) -> PyramidBackbone:
    # Not at the top: importing mmvitattn must not import a runner.
    from .engine.checkpoints import load_checkpoint
    from .engine.weights import load_backbone_weights

    if options.get('init_cfg') is not None:
        raise ValueError('give pretrained or init_cfg, not both')
    checkpoint = load_checkpoint(source)
    deploy = options.get('deploy', False)
    if deploy:
        options['deploy'] = False  # the checkpoint may be folded or not
    backbone = family(**options)
    load_backbone_weights(backbone, checkpoint, str(source))
    if deploy:
        backbone.switch_to_deploy()
    return backbone


def _archs() -> dict[str, tuple[type[Any], str]]:
    """Class and arch of each name."""
    return {
        f'{family}_{arch}': (cls, arch)
        for family, cls in families().items()
        for arch in cls.arch_zoo
    }

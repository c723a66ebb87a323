"""Settings that an ONNX file contains, so that images can be prepared without the config.

``tools/deploy/run_onnx.py`` reads them.
"""

import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mmengine.config import Config

from .. import hub
from ..errors import UsageError
from ..version import __version__
from .build import dataset_meta
from .predictors import CIFAR_SIDE

IGNORED = {'PackInputs', 'PackDetInputs', 'PackSegInputs', 'LoadAnnotations', 'LoadImageFromFile'}
NO_NORMALISATION = dict(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])


def describe(cfg: Config, module: Any, checkpoint: Mapping | None) -> dict[str, Any]:
    """Task, classes and preprocessing of a whole model.

    Args:
        cfg: the config.
        module: the :class:`.onnx_export.Exportable`.
        checkpoint: content of the checkpoint, which may have class names.

    Returns:
        ``version``, ``task``, ``classes``, ``palette``, ``mean``, ``std``, ``channels`` ('rgb' or
        'bgr'), ``resize`` (the steps), ``min_size``, ``pad_divisor`` (the graph contains padding).

    Raises:
        UsageError: if the test pipeline has a step that cannot be expressed.
    """
    data = cfg.get('data_preprocessor') or cfg.model.get('data_preprocessor') or {}
    mean, std = (list(data.get(key) or NO_NORMALISATION[key]) for key in ('mean', 'std'))
    swaps = bool(data.get('bgr_to_rgb') or data.get('to_rgb'))
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    is_cifar = str(dataset.get('type', '')).startswith('CIFAR')  # it yields RGB
    steps = resize_steps(dataset.get('pipeline', ())) if module.task != 'features' else []
    if is_cifar:
        steps.insert(0, _resize((CIFAR_SIDE, CIFAR_SIDE), interpolation='area'))
    return dict(
        version=__version__,
        task=module.task,
        **(dataset_meta(cfg, checkpoint or {}) if dataset else dict(classes=[], palette=[])),
        mean=mean,
        std=std,
        channels='rgb' if swaps != is_cifar else 'bgr',
        resize=steps,
        pad_divisor=module.divisor,
        min_size=getattr(getattr(module.model, 'backbone', module.model), 'min_size', 1),
    )


def resize_steps(pipeline: Any) -> list[dict[str, Any]]:
    """Resizing and cropping of a test pipeline.

    Args:
        pipeline: the transforms of mmcv and the toolboxes.

    Returns:
        ``type`` is 'scale' (to ``size``, or into it with ``keep_ratio``), 'edge' (the side ``edge``
        gets the length ``size``) or 'crop' (the centre); sizes are (width, height).

    Raises:
        UsageError: for a transform of another kind.
    """
    steps = []
    for transform in pipeline:
        kind = transform['type'].rpartition('.')[2]
        options = {key: transform.get(key, default) for key, default in FILTER.items()}
        if kind == 'Resize' and transform.get('scale'):
            scale = transform['scale']
            size = (scale, scale) if isinstance(scale, int) else tuple(scale)
            steps.append(_resize(size, transform.get('keep_ratio', False), **options))
        elif kind == 'ResizeEdge':
            edge = dict(edge=transform.get('edge', 'short'), size=transform['scale'])
            steps.append(dict(type='edge', **edge, **options))
        elif kind == 'CenterCrop':
            size = transform['crop_size']
            size = (size, size) if isinstance(size, int) else tuple(size)
            steps.append(dict(type='crop', size=size))
        elif kind not in IGNORED:
            raise UsageError(
                f'the test pipeline has {kind}, which an ONNX file cannot describe; use Resize, '
                'ResizeEdge and CenterCrop, or export the backbone: --backbone-only'
            )
    return steps


FILTER = dict(interpolation='bilinear', backend='cv2')


def _resize(size: tuple, keep_ratio: bool = False, **options: str) -> dict[str, Any]:
    return dict(type='scale', size=size, keep_ratio=keep_ratio, **{**FILTER, **options})


def load_runner() -> ModuleType:
    """``tools/deploy/run_onnx.py`` as a module; it imports nothing of this package."""
    path = hub.resources() / 'tools' / 'deploy' / 'run_onnx.py'
    spec = importlib.util.spec_from_file_location('mmvitattn_run_onnx', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

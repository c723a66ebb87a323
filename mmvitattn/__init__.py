"""mmvitattn: efficient-attention backbones for mmdet, mmsegmentation and mmpretrain.

``mmvitattn.ops`` and ``mmvitattn.layers`` need PyTorch alone. The backbones
(``mmvitattn.models``) and the tools need one of the two OpenMMLab stacks; importing this package
then registers them. This module never raises ImportError: MMEngine would swallow it and report
"not in the registry" instead.
"""

import importlib.util
import warnings

from . import compat
from .version import __version__

__all__ = ['MISSING_STACK', '__version__', 'build_backbone', 'has_mm_stack', 'list_backbones']

MISSING_STACK = (
    'MMEngine is not installed: mmvitattn.ops and mmvitattn.layers work, the backbones, configs '
    'and tools do not. Install one stack: `pip install "mmvitattn[onedl]"` (maintained forks, '
    'current torch) or `pip install "mmvitattn[openmmlab]"` (OpenMMLab\'s originals, torch 2.1); '
    'in a clone, `pip install -e ".[onedl]"`.'
)


def has_mm_stack() -> bool:
    """Whether MMEngine, of either stack, can be imported."""
    return importlib.util.find_spec('mmengine') is not None


compat.install()
if has_mm_stack():
    try:
        from .zoo import build_backbone, list_backbones  # registers the backbones
    except ImportError as error:
        warnings.warn(f'mmvitattn: the backbones cannot be imported: {error}', stacklevel=2)
else:
    warnings.warn(MISSING_STACK, stacklevel=2)


def __getattr__(name: str):
    parts = ('models', 'registry', 'engine', 'converters', 'zoo')
    if name in (*parts, 'build_backbone', 'list_backbones') and not has_mm_stack():
        raise AttributeError(f'mmvitattn.{name}: {MISSING_STACK}')
    raise AttributeError(f"module 'mmvitattn' has no attribute {name!r}")

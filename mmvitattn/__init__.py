"""mmvitattn: efficient-attention backbones for PyTorch and the OpenMMLab toolboxes.

The backbones, layers and ops need only torch, torchvision, numpy and safetensors. Where one of the
two OpenMMLab stacks is installed, importing this package registers the backbones in it. This module
never raises ImportError, which MMEngine would swallow and report as "not in the registry".
"""

import importlib.util
import warnings

from . import compat, process
from .version import __version__

__all__ = ['__version__', 'build_backbone', 'has_mm_stack', 'list_backbones']


def has_mm_stack() -> bool:
    """Whether MMEngine, of either stack, can be imported."""
    return importlib.util.find_spec('mmengine') is not None


process.prepare_tool()  # before torch is imported
compat.install()
try:
    from .checkpoint import register_published
    from .zoo import build_backbone, list_backbones  # registers the backbones

    if has_mm_stack():
        register_published()
except ImportError as error:
    warnings.warn(f'mmvitattn: the backbones cannot be imported: {error}', stacklevel=2)

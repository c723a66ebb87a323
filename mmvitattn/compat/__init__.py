"""Makes mmdet usable with an mmcv that was installed without compiled ops.

mmcv-lite, and the pure Python wheel of onedl-mmcv, lack the extension module ``mmcv._ext``, so that
``import mmcv.ops`` and ``import mmdet`` fail. :func:`install` adds an import hook that provides the
module: with the ops that common detectors need, computed by torchvision and PyTorch, and for every
other op a function that raises a clear error when it is called.

The hook is the last in ``sys.meta_path``, so existing compiled ops have precedence. mmdet binds
mmcv's ops at import: call :func:`install` before importing mmdet.

The environment variable ``MMVITATTN_MMCV_OPS`` is ``auto`` (the default) or ``off``.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['ENV_VAR', 'install', 'is_active']

ENV_VAR = 'MMVITATTN_MMCV_OPS'
MMCV_EXT = 'mmcv._ext'

logger = logging.getLogger('mmvitattn')


class MMCVExtLoader(Loader):
    """Fills the module ``mmcv._ext`` with the ops of :mod:`mmvitattn.compat.mmcv_ops`."""

    _announced = False

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the creation of the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Adds the ops to the new module and warns once per process.

        Raises:
            ImportError: if torch or torchvision cannot be imported.
        """
        from . import mmcv_ops  # not at the top, since it imports torch

        vars(module).update(mmcv_ops.OPS, __getattr__=mmcv_ops.missing_op)
        if not MMCVExtLoader._announced:
            MMCVExtLoader._announced = True
            logger.warning(
                'mmcv is installed without compiled ops: those of common detectors are computed '
                'by mmvitattn with torchvision and PyTorch, other mmcv ops raise an error when '
                'called. MMVITATTN_MMCV_OPS=off turns this off.'
            )


class MMCVExtFinder(MetaPathFinder):
    """Finds only the module ``mmcv._ext``."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Spec of ``mmcv._ext``; ``None`` for any other module."""
        if fullname != MMCV_EXT:
            return None
        return ModuleSpec(fullname, MMCVExtLoader(), origin='mmvitattn.compat')


def install() -> None:
    """Appends the import hook to ``sys.meta_path``, unless it is already installed.

    Imports neither torch nor mmcv: both are imported together with ``mmcv._ext``. Does nothing if
    ``MMVITATTN_MMCV_OPS`` is ``off``. Never raises: for an unknown value of the variable, it warns
    and uses ``auto``.
    """
    mode = os.environ.get(ENV_VAR, '').strip().lower() or 'auto'
    if mode == 'off' or any(isinstance(finder, MMCVExtFinder) for finder in sys.meta_path):
        return
    if mode != 'auto':
        logger.warning('%s=%r is neither "auto" nor "off": using "auto".', ENV_VAR, mode)
    sys.meta_path.append(MMCVExtFinder())


def is_active() -> bool:
    """Whether this process has imported ``mmcv._ext`` from this package."""
    spec = getattr(sys.modules.get(MMCV_EXT), '__spec__', None)
    return isinstance(getattr(spec, 'loader', None), MMCVExtLoader)

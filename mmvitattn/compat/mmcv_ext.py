"""Import hook that answers for ``mmcv._ext``, and for nothing else."""

import logging
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['MMCV_EXT', 'MMCVExtFinder', 'MMCVExtLoader']

MMCV_EXT = 'mmcv._ext'

logger = logging.getLogger('mmvitattn')


class MMCVExtLoader(Loader):
    """Fills the module ``mmcv._ext`` with the ops of :mod:`mmvitattn.compat.mmcv_ops`."""

    _announced = False

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the creation of the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Add the ops to the module and report, once per process, that they stand in.

        Args:
            module: The new, empty ``mmcv._ext``.

        Raises:
            ImportError: torch or torchvision cannot be imported.
        """
        from . import mmcv_ops  # here, not above: it imports torch

        vars(module).update(mmcv_ops.OPS)
        module.__getattr__ = mmcv_ops.missing_op
        if not MMCVExtLoader._announced:
            MMCVExtLoader._announced = True
            logger.warning(
                'mmcv is installed without compiled ops: nms, roi_align and sigmoid_focal_loss '
                'are computed by mmvitattn with torchvision, other mmcv ops raise an error when '
                'called. MMVITATTN_MMCV_OPS=off turns this off.'
            )


class MMCVExtFinder(MetaPathFinder):
    """Finds ``mmcv._ext``; meant for the end of ``sys.meta_path``, where compiled ops win."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec of the stand-in, or None for any module but ``mmcv._ext``."""
        if fullname != MMCV_EXT:
            return None
        return ModuleSpec(fullname, MMCVExtLoader(), origin='mmvitattn.compat')

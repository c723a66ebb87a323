"""Lets mmdet run beside an mmcv that was installed without compiled ops.

mmcv-lite, and the pure Python wheel of onedl-mmcv, lack the extension module ``mmcv._ext``;
``import mmcv.ops``, and with it mmdet, then fails. ``install()`` makes Python find a stand-in for
that one module: the ops that common detectors need, computed by torchvision, and for every other
op a function that says what is missing when it is called.

The stand-in is looked up last, so it is never used where compiled ops exist. mmdet's modules bind
mmcv's ops when they are imported: install before importing mmdet.

The environment variable ``MMVITATTN_MMCV_OPS`` is ``auto`` (the default) or ``off``.
"""

import logging
import os
import sys

from .mmcv_ext import MMCV_EXT, MMCVExtFinder, MMCVExtLoader

__all__ = ['ENV_VAR', 'install', 'is_active']

ENV_VAR = 'MMVITATTN_MMCV_OPS'

logger = logging.getLogger('mmvitattn')


def install() -> None:
    """Append the finder of the stand-in to ``sys.meta_path``, unless it is there already.

    Imports neither torch nor mmcv: both wait until something really imports ``mmcv._ext``.
    Does nothing if ``MMVITATTN_MMCV_OPS`` is ``off``. Never raises; an unknown value of the
    variable is reported as a warning and read as ``auto``.
    """
    mode = os.environ.get(ENV_VAR, '').strip().lower() or 'auto'
    if mode == 'off' or any(isinstance(finder, MMCVExtFinder) for finder in sys.meta_path):
        return
    if mode != 'auto':
        logger.warning('%s=%r is neither "auto" nor "off": using "auto".', ENV_VAR, mode)
    sys.meta_path.append(MMCVExtFinder())


def is_active() -> bool:
    """Whether the ops of this process come from the stand-in.

    Returns:
        True once ``mmcv._ext`` has been imported and is the stand-in; False before that, and
        where mmcv has compiled ops.
    """
    spec = getattr(sys.modules.get(MMCV_EXT), '__spec__', None)
    return isinstance(getattr(spec, 'loader', None), MMCVExtLoader)

"""Finds the configs and tools of this package, installed from a wheel or used from a clone.

A wheel carries them under ``mmvitattn/.mim``, as the OpenMMLab packages do; a clone has them beside
the package. ``mmengine.hub.get_config('mmvitattn::demo/linglo_b0_shapes.py')`` reads the wheel's;
as it asks for a folder in the name, :func:`get_config` reads the others.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .engine.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config

PACKAGE = Path(__file__).resolve().parent


def resources() -> Path:
    """Folder that holds ``configs``, ``tools`` and ``model-index.yml``.

    Raises:
        UsageError: if this installation has none.
    """
    for folder in (PACKAGE / '.mim', PACKAGE.parent):
        if (folder / 'model-index.yml').is_file() and (folder / 'configs').is_dir():
            return folder
    raise UsageError(
        f'{PACKAGE} comes without configs and tools: install a wheel (pip wheel .) or a clone '
        '(pip install -e .)'
    )


def list_configs() -> list[str]:
    """Names of all configs, those in a folder as ``demo/NAME`` and ``ablations/NAME``."""
    configs = resources() / 'configs'
    paths = [p for folder in ('', 'demo/', 'ablations/') for p in configs.glob(f'{folder}*.py')]
    return sorted(path.relative_to(configs).with_suffix('').as_posix() for path in paths)


def config_path(name: str) -> Path:
    """File of a config.

    Args:
        name: as in :func:`list_configs`, with or without ``.py`` and a leading ``configs/``.

    Raises:
        UsageError: if there is no such config.
    """
    plain = name.removeprefix('configs/').removesuffix('.py')
    if plain not in list_configs():
        raise UsageError(f'there is no config {name!r}; mmvitattn.hub.list_configs() names them')
    return resources() / 'configs' / f'{plain}.py'


def get_config(name: str) -> 'Config':
    """Reads a config.

    Args:
        name: as in :func:`list_configs`, with or without ``.py``.

    Raises:
        UsageError: if there is no such config.
    """
    from mmengine.config import Config

    return Config.fromfile(config_path(name))

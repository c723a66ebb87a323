"""Finds the configs and tools of this package, in a wheel or in a clone.

A wheel contains them in ``mmvitattn/.mim``, like the OpenMMLab packages; a clone in the folder of
the package. ``mmengine.hub.get_config('mmvitattn::demo/linglo_b0_shapes.py')`` reads those of a
wheel, but requires a folder in the name; :func:`get_config` reads all.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config

PACKAGE = Path(__file__).resolve().parent


def resources() -> Path:
    """Finds the folder with ``configs``, ``tools`` and ``model-index.yml``.

    Raises:
        UsageError: if this installation has no such folder.
    """
    for folder in (PACKAGE / '.mim', PACKAGE.parent):
        if (folder / 'model-index.yml').is_file() and (folder / 'configs').is_dir():
            return folder
    raise UsageError(
        f'{PACKAGE} has no configs and tools: install a wheel (pip wheel .) or a clone '
        '(pip install -e .)'
    )


def list_configs() -> list[str]:
    """Lists the names of all configs; those in subfolders as ``demo/NAME``, ``ablations/NAME``."""
    configs = resources() / 'configs'
    paths = [p for folder in ('', 'demo/', 'ablations/') for p in configs.glob(f'{folder}*.py')]
    return sorted(path.relative_to(configs).with_suffix('').as_posix() for path in paths)


def config_path(name: str) -> Path:
    """Finds the file of a config.

    Args:
        name: as in :func:`list_configs`, with or without ``.py`` and a leading ``configs/``.

    Raises:
        UsageError: if there is no such config.
    """
    plain = name.removeprefix('configs/').removesuffix('.py')
    if plain not in list_configs():
        raise UsageError(f'there is no config {name!r}; mmvitattn.hub.list_configs() lists them')
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

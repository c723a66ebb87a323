"""What the backbones and checkpoints take from MMEngine, or small classes in its place.

With MMEngine, the names of this module are its own, so that the backbones are ``BaseModule``s in
its registries. Without it they are plain PyTorch modules: ``init_cfg`` is refused, registries only
store, and the objects that MMEngine writes into checkpoints are read as plain data.
"""

import logging
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from torch import nn

from ..errors import OptionError

if find_spec('mmengine') is not None:
    from mmengine import registry as root_registries
    from mmengine.config import ConfigDict
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.logging import HistoryBuffer, print_log
    from mmengine.model import BaseModule
    from mmengine.registry import Registry

    MODULE2PACKAGE.setdefault('mmvitattn', 'mmvitattn')  # lets mmengine.hub find our configs
else:

    class BaseModule(nn.Module):  # type: ignore[no-redef]
        """Stands for MMEngine's: start values are set when a module is built.

        Args:
            init_cfg: must be ``None``.

        Raises:
            OptionError: if it is not.
        """

        def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
            super().__init__()
            if init_cfg is not None:
                raise OptionError(
                    f'init_cfg={init_cfg} needs MMEngine, which is not installed; '
                    'build_backbone(NAME, pretrained=FILE) loads weights without it'
                )

        def init_weights(self) -> None:
            """Does nothing: with MMEngine, it carries out ``init_cfg``."""

    class Registry:  # type: ignore[no-redef]
        """Stands for MMEngine's: stores classes by name, but builds nothing from configs."""

        def __init__(self, name: str, **_: Any) -> None:
            self.name = name
            self.module_dict: dict[str, type] = {}

        def register_module(self, name: str | None = None, module: type | None = None) -> Any:
            """Stores ``module``; without it, returns a class decorator."""
            if module is None:
                return lambda cls: self.register_module(name, cls)
            self.module_dict[name or module.__name__] = module
            return module

    class ConfigDict(dict):  # type: ignore[no-redef]
        """Stands for MMEngine's in checkpoints."""

    class HistoryBuffer:  # type: ignore[no-redef]
        """Stands for MMEngine's in checkpoints, which name these functions."""

        min = max = current = mean = None

    def print_log(message: str, logger: str | None = None, level: int = logging.INFO) -> None:
        """Logs a message; ``logger`` is for MMEngine's function."""
        logging.getLogger('mmvitattn').log(level, message)

    root_registries = SimpleNamespace(
        **{
            name: Registry(name)
            for name in (
                'MODELS',
                'HOOKS',
                'OPTIM_WRAPPERS',
                'OPTIM_WRAPPER_CONSTRUCTORS',
                'STRATEGIES',
            )
        }
    )

__all__ = [
    'BaseModule',
    'ConfigDict',
    'HistoryBuffer',
    'Registry',
    'print_log',
    'root_registries',
]

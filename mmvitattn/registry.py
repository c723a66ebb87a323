"""Registries of this package: children of MMEngine's, with the scope ``mmvitattn``.

With these, ``type='mmvitattn.LinGlo'`` works in any mmdet, mmseg or mmpretrain config without
``custom_imports``: MMEngine imports the locations below on first use. MMEngine hides an ImportError
in these modules and reports "not in the registry", so they import no optional packages.
"""

from collections.abc import Callable

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

MODULE2PACKAGE.setdefault('mmvitattn', 'mmvitattn')  # lets mmengine.hub find the wheel's configs

MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmvitattn', locations=['mmvitattn.models']
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmvitattn',
    locations=['mmvitattn.inference.classification_pictures', 'mmvitattn.training.exact_resume'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvitattn',
    locations=['mmvitattn.training.layer_decay', 'mmvitattn.training.weight_decay'],
)
STRATEGIES = Registry(
    'strategy',
    parent=MMENGINE_STRATEGIES,
    scope='mmvitattn',
    locations=['mmvitattn.training.sharding'],
)


def register_backbone(cls: type) -> type:
    """Class decorator that registers a backbone as ``mmvitattn.Name`` and as ``Name``.

    In the scope of another toolbox, the name without a scope is found only in MMEngine's root
    registry, so the class is registered in both. If the root registry already has another class of
    this name, it is not replaced: the name with scope always works.
    """
    MODELS.register_module()(cls)
    register: Callable = MMENGINE_MODELS.register_module
    if MMENGINE_MODELS.module_dict.get(cls.__name__) is None:
        register()(cls)
    return cls

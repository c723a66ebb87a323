"""Registries of this package: children of MMEngine's, under the scope ``mmvitattn``.

With these, ``type='mmvitattn.LinGlo'`` resolves in any mmdet, mmseg or mmpretrain config without
``custom_imports``: MMEngine imports the locations below on first use. MMEngine swallows an
ImportError raised there and reports "not in the registry", so those modules import nothing exotic.
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
    """Class decorator: makes a backbone selectable as ``mmvitattn.Name`` and as plain ``Name``.

    The unscoped name resolves from another toolbox's scope only through MMEngine's root registry,
    so the class is entered in both. Where the root already holds that name for another class, it
    is left alone: the scoped name always works.
    """
    MODELS.register_module()(cls)
    register: Callable = MMENGINE_MODELS.register_module
    if MMENGINE_MODELS.module_dict.get(cls.__name__) is None:
        register()(cls)
    return cls

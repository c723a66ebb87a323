"""Registries of this package: children of MMEngine's, with the scope ``mmvitattn``.

With these, ``type='mmvitattn.LinGlo'`` works in any mmdet, mmseg or mmpretrain config without
``custom_imports``: MMEngine imports the locations below on first use. MMEngine hides an ImportError
in these modules and reports "not in the registry", so they import no optional packages.
"""

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
    locations=[
        'mmvitattn.inference.classification_pictures',
        'mmvitattn.training.checkpoint_hook',
        'mmvitattn.training.exact_resume',
    ],
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


def register_model(cls: type, name: str | None = None) -> type:
    """Makes a class selectable as ``mmvitattn.Name`` and as plain ``Name``; a class decorator.

    The unscoped name resolves from another toolbox's scope only through MMEngine's root registry,
    so the class is registered in both. If the root registry already holds that name for another
    class, it is left as it is: the scoped name always works.

    Args:
        cls: the class.
        name: its name in configs, default the class's own.

    Returns:
        The class.
    """
    name = name or cls.__name__
    MODELS.register_module(name, module=cls)
    if MMENGINE_MODELS.module_dict.get(name) is None:
        MMENGINE_MODELS.register_module(name, module=cls)
    return cls

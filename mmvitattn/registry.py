"""Registries of this package: children of MMEngine's, with the scope ``mmvitattn``.

With these, ``type='mmvitattn.LinGlo'`` works in any mmdet, mmseg or mmpretrain config without
``custom_imports``: MMEngine imports the locations below on first use. MMEngine hides an ImportError
in these modules and reports "not in the registry", so they import no optional packages. Without
MMEngine, the registries only store the classes.
"""

from .compat.engine import Registry, root_registries

MODELS = Registry(
    'model', parent=root_registries.MODELS, scope='mmvitattn', locations=['mmvitattn.models']
)
HOOKS = Registry(
    'hook',
    parent=root_registries.HOOKS,
    scope='mmvitattn',
    locations=[
        'mmvitattn.inference.classification_pictures',
        'mmvitattn.training.checkpoint_hook',
        'mmvitattn.training.exact_resume',
        'mmvitattn.training.saliency',
    ],
)
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper',
    parent=root_registries.OPTIM_WRAPPERS,
    scope='mmvitattn',
    locations=['mmvitattn.training.mixed_precision'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=root_registries.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvitattn',
    locations=['mmvitattn.training.layer_decay', 'mmvitattn.training.weight_decay'],
)
STRATEGIES = Registry(
    'strategy',
    parent=root_registries.STRATEGIES,
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
    if root_registries.MODELS.module_dict.get(name) is None:
        root_registries.MODELS.register_module(name, module=cls)
    return cls

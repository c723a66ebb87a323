"""Layer-wise learning-rate decay, one constructor for detectors, segmenters and classifiers."""

from typing import Any

from mmengine.logging import MMLogger
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from .weight_decay import WeightDecayOptimWrapperConstructor


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(WeightDecayOptimWrapperConstructor):
    """The deeper a parameter lies in the backbone, the higher its learning rate.

    A parameter of layer ``depth`` gets ``lr * decay_rate ** (num_layers - 1 - depth)``; whatever
    follows the backbone gets ``lr``. The backbone's ``get_layer_depth`` gives the depths. Weight
    decay is that of the base class, but vectors of any kind take none. Frozen parameters are left
    out; a shared one counts once.

    Works for any model with a ``backbone``, wrapped for distributed training or not, and for a bare
    backbone. Use it as::

        optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            constructor='mmvitattn.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.9),
        )

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper, with ``optimizer``.
        paramwise_cfg: ``decay_rate`` in (0, 1], and the keys of the base class; an ``lr_mult``
            in ``custom_keys`` multiplies the layer's factor.

    Raises:
        ValueError: if ``decay_rate`` is missing or out of range, or the optimizer has no ``lr``.
        TypeError: when called, for a model without such a backbone.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = dict(paramwise_cfg or {})
        rate = options.pop('decay_rate', None)
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                f'{type(self).__name__}: paramwise_cfg.decay_rate={rate!r} must be a number in '
                '(0, 1], e.g. paramwise_cfg=dict(decay_rate=0.9)'
            )
        optimizer = optim_wrapper_cfg.get('optimizer', {})
        if 'optimizer' in optim_wrapper_cfg and optimizer.get('lr') is None:
            raise ValueError(f'{type(self).__name__}: the optimizer needs an lr, got {optimizer}')
        if optimizer.get('weight_decay') is not None:
            options.setdefault('flat_decay_mult', 0.0)
        super().__init__(optim_wrapper_cfg, options)
        # MMEngine ignores an empty paramwise_cfg, and with it the layers
        self.paramwise_cfg: dict = {'decay_rate': rate, **self.paramwise_cfg}

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """See the base class; parameters with equal options share a group.

        Raises:
            TypeError: if the model has no backbone with ``get_layer_depth``.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        backbone, backbone_prefix = find_backbone(module)
        single: list[dict] = []  # one parameter each, with MMEngine's options
        super().add_params(single, module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups: dict[tuple, dict] = {}
        for group in single:
            (parameter,) = group.pop('params')
            name = names.pop(id(parameter), None)
            if name is None:  # shared, and in a group already
                continue
            depth, num_layers = backbone.get_layer_depth(name, backbone_prefix)
            self._set_rate(group, depth, num_layers)
            key = (depth, *sorted((k, repr(v)) for k, v in group.items()))
            groups.setdefault(key, dict(params=[], **group))['params'].append(parameter)
        params += (groups[key] for key in sorted(groups))
        _log(params)

    def _set_rate(self, group: dict, depth: int, num_layers: int) -> None:
        scale = self.paramwise_cfg['decay_rate'] ** (num_layers - 1 - depth)
        group['lr_scale'] = scale
        group['lr'] = scale * group.get('lr', self.base_lr)
        if self.base_wd is not None:
            group.setdefault('weight_decay', self.base_wd)
        decays = 'decay' if group.get('weight_decay') else 'no_decay'
        group['group_name'] = f'layer_{depth}_{decays}'


def find_backbone(model: nn.Module) -> tuple[Any, str]:
    """The part of a model that knows the depths of its parameters.

    Args:
        model: a model with a ``backbone``, or a bare backbone.

    Returns:
        The backbone, and the prefix of its parameters' names in the model.

    Raises:
        TypeError: if there is none with ``get_layer_depth``.
    """
    backbone, prefix = getattr(model, 'backbone', None), 'backbone.'
    if not isinstance(backbone, nn.Module):
        backbone, prefix = model, ''
    if not hasattr(backbone, 'get_layer_depth'):
        what = f'its backbone, {type(backbone).__name__},' if prefix else 'it'
        raise TypeError(
            f'no layer-wise learning rates for {type(model).__name__}: {what} has no '
            'get_layer_depth; use one of mmvitattn, or leave out the constructor'
        )
    return backbone, prefix


def _log(groups: list[dict]) -> None:
    logger = MMLogger.get_current_instance()
    for group in groups:
        logger.debug(
            '%s: %d parameters, lr %.3g, weight decay %s',
            group['group_name'],
            len(group['params']),
            group['lr'],
            group.get('weight_decay'),
        )

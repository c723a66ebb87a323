"""Weight decay, except for the parameters that the parts of a model exclude."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

# Not flat_decay_mult: sharded training flattens every parameter.
NO_DECAY = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class WeightDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, without weight decay where the model wants none.

    Norms and biases take no weight decay, nor do the parameters that any part of the model names in
    ``no_weight_decay()``: the backbones of this package name position tables, learned queries,
    saliency vectors and attention scales there. Works for any model, with or without such a
    backbone, wrapped for distributed training or not. Use it as::

        optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            constructor='mmvitattn.WeightDecayOptimWrapperConstructor',
        )

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper, with ``optimizer``.
        paramwise_cfg: MMEngine's usual keys. ``norm_decay_mult`` and ``bias_decay_mult`` default
            to 0; a ``decay_mult`` in ``custom_keys`` overrides ``no_weight_decay()``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = dict(paramwise_cfg or {})
        if optim_wrapper_cfg.get('optimizer', {}).get('weight_decay') is not None:
            options = NO_DECAY | options
        super().__init__(optim_wrapper_cfg, options)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Adds the parameters of a module, a group for each.

        Args:
            params: parameter groups, extended in place.
            module: the model, or, called by MMEngine, a part of it.
            prefix: name of the part; empty for the model.
            is_dcn_module: whether the part belongs to a deformable convolution.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        with _only_errors(MMLogger.get_current_instance()):
            super().add_params(params, module)
        if self.base_wd is None:
            return
        exempt = {id(parameter) for parameter in parameters_without_decay(module)}
        for group in params:
            if id(group['params'][0]) in exempt and 'decay_mult' not in group:
                group['weight_decay'] = 0.0


def parameters_without_decay(model: nn.Module) -> Iterator[Tensor]:
    """The parameters that parts of a model name in ``no_weight_decay()``."""
    for part in model.modules():
        no_weight_decay = getattr(part, 'no_weight_decay', None)
        if callable(no_weight_decay):
            names = no_weight_decay()
            yield from (p for name, p in part.named_parameters() if name in names)


@contextmanager
def _only_errors(logger: logging.Logger) -> Iterator[None]:
    """MMEngine logs the options of every single parameter."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

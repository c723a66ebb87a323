"""Shared by the converters: one rule per parameter, and the check that each is used once."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.base import PyramidBackbone


class Rule(NamedTuple):
    """How to make one parameter from one or several of the release."""

    target: str  # name in our state dict
    source: str | tuple[str, ...]  # name or names in the release
    convert: Callable[..., Tensor] = Tensor.contiguous  # takes the parameters of ``source``

    @property
    def sources(self) -> tuple[str, ...]:
        """Names in the release."""
        return (self.source,) if isinstance(self.source, str) else self.source


def apply_rules(
    rules: Sequence[Rule],
    source: Mapping[str, Tensor],
    backbone: PyramidBackbone,
    num_classes: int,
    neck: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Converts every parameter once.

    Args:
        rules: one for each parameter of the classifier.
        source: parameters of the release by name.
        backbone: backbone with only the last stage as output, for names and shapes.
        num_classes: outputs of the classifier's linear layer.
        neck: pooling before the classifier's linear layer, if it has parameters.

    Returns:
        A classifier's state dict, ``backbone.*``, ``neck.*`` and ``head.fc.*``.

    Raises:
        CheckpointError: if parameters are missing, left over, of other shapes or not finite.
    """
    shapes = _shapes('backbone', backbone)
    if neck is not None:
        shapes |= _shapes('neck', neck)
    shapes['head.fc.weight'] = (num_classes, backbone.feature_info.channels()[-1])
    shapes['head.fc.bias'] = (num_classes,)
    wanted = {name for rule in rules for name in rule.sources}
    missing, left_over = sorted(wanted - set(source)), sorted(set(source) - wanted)
    if missing or left_over:
        raise CheckpointError(
            f'the checkpoint does not fit the architecture: {len(missing)} parameters are missing '
            f'({_some(missing)}), {len(left_over)} are left over ({_some(left_over)})'
        )
    state_dict: dict[str, Tensor] = {}
    wrong: list[str] = []
    not_finite: list[str] = []
    for rule in rules:
        parameters = [source[name] for name in rule.sources]
        what = f'{rule.sources[0]} {tuple(parameters[0].shape)}'
        try:
            state_dict[rule.target] = rule.convert(*parameters)
        except (RuntimeError, IndexError):
            wrong.append(what)
            continue
        if tuple(state_dict[rule.target].shape) != shapes[rule.target]:
            wrong.append(f'{what} for {rule.target} {shapes[rule.target]}')
        elif not torch.isfinite(state_dict[rule.target]).all():
            not_finite.append(rule.target)
    if wrong:
        raise CheckpointError(f'{len(wrong)} parameters have another shape: {_some(wrong)}')
    if not_finite:
        raise CheckpointError(
            f'{len(not_finite)} parameters contain NaN or infinite values: {_some(not_finite)}'
        )
    if set(state_dict) != set(shapes):
        raise CheckpointError(
            f'no rule gives a value for {_some(sorted(set(shapes) - set(state_dict)))}'
        )
    return state_dict


def get_parameter(source: Mapping[str, Tensor], name: str, least_axes: int = 1) -> Tensor:
    """A parameter whose shape describes the architecture.

    Raises:
        CheckpointError: if it is missing, empty or has less than ``least_axes`` axes.
    """
    if name not in source or source[name].dim() < least_axes or source[name].numel() == 0:
        raise CheckpointError(
            f'not an official checkpoint of this model: parameter {name} is missing or empty'
        )
    return source[name]


def count(source: Mapping[str, Tensor], pattern: str) -> int:
    """Number of distinct prefixes of parameter names that match a regular expression."""
    return len({match.group() for match in (re.match(pattern, name) for name in source) if match})


def _shapes(prefix: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and running statistics by name."""
    return {
        f'{prefix}.{name}': tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }


def _some(names: Sequence[str], most: int = 3) -> str:
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '') if names else 'none'

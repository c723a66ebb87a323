"""What the converters share: one rule for each parameter, applied so that none is lost."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import CheckpointError


class Rule(NamedTuple):
    """One parameter: its name here, its name in the release, how the one becomes the other.

    Where one parameter here is several in the release, ``source`` names them all and ``convert``
    takes as many.
    """

    target: str
    source: str | tuple[str, ...]
    convert: Callable[..., Tensor] = Tensor.contiguous

    @property
    def sources(self) -> tuple[str, ...]:
        """Names in the release."""
        return (self.source,) if isinstance(self.source, str) else self.source


def apply_rules(
    rules: Sequence[Rule],
    source: Mapping[str, Tensor],
    backbone: nn.Module,
    num_classes: int,
    neck: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Converts every parameter once, or says what does not fit.

    Args:
        rules: one for each parameter of the classifier.
        source: parameters of the release by name.
        backbone: backbone with the last stage alone as output; tells names and shapes.
        num_classes: outputs of the classifier's linear map.
        neck: what pools the map, where it has parameters.

    Returns:
        A classifier's state dict, ``backbone.*``, ``neck.*`` and ``head.fc.*``.

    Raises:
        CheckpointError: if parameters are missing, left over, without value or of other shapes.
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
    state_dict, wrong = {}, []
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
    if wrong:
        raise CheckpointError(f'{len(wrong)} parameters have another shape: {_some(wrong)}')
    if set(state_dict) != set(shapes):
        raise CheckpointError(f'without value: {_some(sorted(set(shapes) - set(state_dict)))}')
    return state_dict


def get_parameter(
    source: Mapping[str, Tensor], name: str, model: str, least_axes: int = 1
) -> Tensor:
    """A parameter that tells something about the architecture.

    Args:
        source: parameters of the release by name.
        name: its name.
        model: name of the model family, for the error message.
        least_axes: axes that it has at least.

    Returns:
        The parameter.

    Raises:
        CheckpointError: if it is missing, empty or has fewer axes.
    """
    if name not in source or source[name].dim() < least_axes or source[name].numel() == 0:
        raise CheckpointError(f'no {model} checkpoint: parameter {name} is missing or empty')
    return source[name]


def count(source: Mapping[str, Tensor], pattern: str) -> int:
    """Number of different beginnings of parameters' names.

    Args:
        source: parameters of the release by name.
        pattern: regular expression for the beginning of a name.

    Returns:
        How many different strings match it.
    """
    return len({match.group() for match in (re.match(pattern, name) for name in source) if match})


def _shapes(prefix: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of what a checkpoint must tell: parameters and running statistics."""
    return {
        f'{prefix}.{name}': tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }


def _some(names: Sequence[str], most: int = 3) -> str:
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '') if names else 'none'

"""Options of all families: choices, and lists with one entry per stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OptionError


def choose(family: str, option: str, value: Any, choices: Mapping) -> Any:
    """The entry of ``choices`` for the value of an option of the class named ``family``.

    Raises:
        OptionError: if the value is not in ``choices``.
    """
    if value not in list(choices):  # a list, since the value may be unhashable
        known = ', '.join(map(repr, choices))
        raise OptionError(f'{family}: {option}={value!r} must be one of {known}')
    return choices[value]


def resolve_out_indices(
    out_indices: int | Sequence[int] | None, num_stages: int
) -> tuple[int, ...]:
    """Non-negative stage indices, in the given order.

    Args:
        out_indices: one or several indices; negative ones count from the last stage; ``None`` for
            all.
        num_stages: number of stages.

    Raises:
        OptionError: if there are no indices, one is out of range or occurs twice.
    """
    if out_indices is None:
        return tuple(range(num_stages))
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    resolved = tuple(i + num_stages if i < 0 else i for i in indices)
    if (
        not resolved
        or len(set(resolved)) < len(resolved)
        or not all(0 <= i < num_stages for i in resolved)
    ):
        raise OptionError(
            f'out_indices={out_indices} must be distinct and lie in '
            f'[{-num_stages}, {num_stages - 1}]: there are {num_stages} stages'
        )
    return resolved


def linear_ramp(largest: float, depths: Sequence[int]) -> list[list[float]]:
    """Drop-path rates that rise linearly from 0 to ``largest`` over all blocks, by stage."""
    last = max(sum(depths) - 1, 1)
    rates = (largest * i / last for i in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def per_stage(name: str, sizes: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """One size for each stage, from one size for all stages or one per stage.

    Raises:
        OptionError: for another number of sizes; the message contains ``name``.
    """
    sizes = (sizes,) * num_stages if isinstance(sizes, int) else tuple(sizes)
    if len(sizes) != num_stages:
        raise OptionError(
            f'{name} must be one number or one for each of {num_stages} stages: {sizes}'
        )
    return sizes

"""Which implementation of an op runs, and why.

Each op registers its implementations in order of preference, each with a ``can_run`` that returns
``None`` or the reason why it cannot take this input. The first that can is used, unless one is
forced: ``MMVITATTN_IMPL=reference`` (every op that has one), ``MMVITATTN_IMPL=op=name`` (one op;
several are separated by commas), or ``with force('reference'): ...``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

ENV_NAME = 'MMVITATTN_IMPL'


class Implementation(NamedTuple):
    """One way to compute an op, with the test of whether it takes an input."""

    function: Callable[..., Tensor]
    can_run: Callable[[Tensor], str | None]


_IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {}
_setting = os.environ.get(ENV_NAME, '')  # a plain global: torch.compile guards on it


def register(
    op: str,
    name: str,
    function: Callable[..., Tensor],
    can_run: Callable[[Tensor], str | None] = lambda x: None,
) -> None:
    """Adds an implementation of ``op`` behind those that are already registered.

    Args:
        op: name of the public function.
        name: name of the implementation, as in ``MMVITATTN_IMPL``.
        function: takes the public function's arguments.
        can_run: gets the op's first argument; returns ``None`` or why it cannot run.
    """
    _IMPLEMENTATIONS.setdefault(op, {})[name] = Implementation(function, can_run)


@contextmanager
def force(setting: str) -> Iterator[None]:
    """Forces implementations inside a ``with`` block, over the environment variable.

    Args:
        setting: as ``MMVITATTN_IMPL``: ``'reference'`` or ``'op=name,op=name'``.

    Raises:
        ValueError: if no such op or implementation is registered.
    """
    global _setting
    _parse(setting)
    previous, _setting = _setting, setting
    try:
        yield
    finally:
        _setting = previous


def choose(op: str, x: Tensor) -> Callable[..., Tensor]:
    """The implementation of ``op`` that runs for the input ``x``.

    Raises:
        ValueError: if a forced implementation does not exist or cannot take the input.
    """
    implementations = _IMPLEMENTATIONS[op]
    forced = _parse(_setting).get(op) if _setting else None
    if forced is not None:
        reason = implementations[forced].can_run(x)
        if reason is not None:
            raise ValueError(f'{op}: forced implementation {forced!r} cannot run: {reason}')
        return implementations[forced].function
    for implementation in implementations.values():
        if implementation.can_run(x) is None:
            return implementation.function
    raise ValueError(f'{op}: no implementation can run; {explain(op, x)}')


def explain(op: str, x: Tensor) -> str:
    """One line that tells, for each implementation of ``op``, whether it takes ``x``, and why."""
    parts = (f'{name}: {i.can_run(x) or "can run"}' for name, i in _IMPLEMENTATIONS[op].items())
    return f'{op} ({"; ".join(parts)})'


def _parse(setting: str) -> dict[str, str]:
    """Maps each op to its forced implementation, e.g. 'reference' or 'op=plain,other=reference'."""
    forced = {}
    for item in filter(None, setting.split(',')):
        op, equals, name = item.strip().partition('=')
        candidates, name = ([op], name) if equals else (list(_IMPLEMENTATIONS), op)
        matches = [o for o in candidates if name in _IMPLEMENTATIONS.get(o, {})]
        if not matches:
            known = [f'{o}={n}' for o, names in _IMPLEMENTATIONS.items() for n in names]
            raise ValueError(
                f'{ENV_NAME}: {item!r} names no implementation; there are {", ".join(known)}'
            )
        forced.update(dict.fromkeys(matches, name))
    return forced

"""Which implementation of an op runs, and why.

Each op registers its implementations in order of preference, each with a ``can_run`` and a ``pays``
that return ``None``, or the reason why it cannot, or had better not, take these arguments. The
first without a reason is used, unless one is forced, which then only has to be able to run:
``MMVITATTN_IMPL=reference`` (every op that has one), ``MMVITATTN_IMPL=op=name`` (one op; several
are separated by commas), or ``with force('reference'): ...``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

ENV_NAME = 'MMVITATTN_IMPL'


class Implementation(NamedTuple):
    """One way to compute an op, with the tests of whether it can and should take an input."""

    function: Callable[..., Tensor]
    can_run: Callable[..., str | None]
    pays: Callable[..., str | None]

    def objection(self, *args: Any) -> str | None:
        """Why it does not run unless forced, or ``None``."""
        return self.pays(*args) or self.can_run(*args)


def _no_objection(*args: Any) -> None:
    return None


_IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {}
_setting = os.environ.get(ENV_NAME, '')  # a plain global: torch.compile guards on it


def register(
    op: str,
    name: str,
    function: Callable[..., Tensor],
    can_run: Callable[..., str | None] = _no_objection,
    pays: Callable[..., str | None] = _no_objection,
    first: bool = False,
) -> None:
    """Adds an implementation of ``op`` behind those that are already registered.

    Args:
        op: name of the public function.
        name: name of the implementation, as in ``MMVITATTN_IMPL``.
        function: takes the public function's arguments.
        can_run: takes the same arguments; returns ``None`` or why it cannot run.
        pays: the same; returns ``None`` or why another implementation is better.
        first: adds it ahead of the others instead.
    """
    others, new = _IMPLEMENTATIONS.get(op, {}), {name: Implementation(function, can_run, pays)}
    _IMPLEMENTATIONS[op] = new | others if first else others | new


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


def choose(op: str, *args: Any) -> Callable[..., Tensor]:
    """The implementation of ``op`` that runs for these arguments.

    Raises:
        ValueError: if a forced implementation does not exist or cannot take the arguments.
    """
    implementations = _IMPLEMENTATIONS[op]
    forced = _parse(_setting).get(op) if _setting else None
    if forced is not None:
        reason = implementations[forced].can_run(*args)
        if reason is not None:
            raise ValueError(f'{op}: forced implementation {forced!r} cannot run: {reason}')
        return implementations[forced].function
    for implementation in implementations.values():
        if implementation.objection(*args) is None:
            return implementation.function
    raise ValueError(f'{op}: no implementation can run; {explain(op, *args)}')


def explain(op: str, *args: Any) -> str:
    """One line that tells, for each implementation of ``op``, whether it takes ``args``, and why.

    Args:
        op: name of the public function.
        args: its arguments, all of them, by position.
    """
    parts = (
        f'{name}: {i.objection(*args) or "can run"}' for name, i in _IMPLEMENTATIONS[op].items()
    )
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

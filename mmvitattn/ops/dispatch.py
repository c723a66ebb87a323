"""How an op runs: by which implementation, in which precision, and whether it is being exported.

Each op registers a list of implementations in order of preference. Each of them has two tests that
return a reason against it, or ``None``: ``reason_not_to_run`` (it cannot take these arguments) and
``reason_not_to_prefer`` (another one is faster). The first implementation without a reason runs,
unless one is forced, which then only has to be able to run: ``MMVITATTN_IMPL=reference`` (every op
that has one), ``MMVITATTN_IMPL=op=name`` (one op; separate several by commas), or
``with force('reference'): ...``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # torch 2.1
    from torch._dynamo import is_compiling
HAS_OPERATORS = hasattr(torch.library, 'register_autograd')  # torch 2.4: operators of our own
is_torch_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)  # torch 2.7

ENV_NAME = 'MMVITATTN_IMPL'


def _no_reason(inputs: Any) -> str | None:
    return None


class Implementation(NamedTuple):
    """One way to compute an op; all three functions take the op's inputs as one argument."""

    name: str
    function: Callable[[Any], Any]
    reason_not_to_run: Callable[[Any], str | None] = _no_reason
    reason_not_to_prefer: Callable[[Any], str | None] = _no_reason

    def reason_against(self, inputs: Any) -> str | None:
        """Why it does not run unless forced, or ``None``."""
        return self.reason_not_to_prefer(inputs) or self.reason_not_to_run(inputs)


_IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {}
_INPUTS: dict[str, Callable[..., Any]] = {}
_setting = os.environ.get(ENV_NAME, '')  # a plain global: torch.compile guards on it


def register(
    op: str, inputs: Callable[..., Any], implementations: Sequence[Implementation]
) -> None:
    """Registers an op.

    Args:
        op: name of the public function.
        inputs: makes the one argument of the implementations from those of the public function.
        implementations: the implementations, in order of preference.
    """
    _INPUTS[op] = inputs
    _IMPLEMENTATIONS[op] = {i.name: i for i in implementations}


def names() -> dict[str, list[str]]:
    """The registered ops, each with the names of its implementations in order of preference."""
    return {op: list(implementations) for op, implementations in _IMPLEMENTATIONS.items()}


@contextmanager
def force(setting: str) -> Iterator[None]:
    """Forces implementations inside a ``with`` block; takes precedence over ``MMVITATTN_IMPL``.

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


def run(op: str, inputs: Any) -> Any:
    """Computes an op by the implementation that is chosen for these inputs.

    Raises:
        ValueError: if a forced implementation does not exist or cannot take the inputs.
    """
    return _choose(op, inputs).function(inputs)


def chosen(op: str, *args: Any) -> str:
    """Name of the implementation that runs for these arguments.

    Args:
        op: name of the public function.
        args: its arguments, all of them, by position.

    Raises:
        ValueError: if a forced implementation does not exist or cannot take the arguments.
    """
    return _choose(op, _INPUTS[op](*args)).name


def explain(op: str, *args: Any) -> str:
    """States for each implementation of an op whether it would run, or the reason against it.

    Args:
        op: name of the public function.
        args: its arguments, all of them, by position.
    """
    return _explain(op, _INPUTS[op](*args))


def _choose(op: str, inputs: Any) -> Implementation:
    implementations = _IMPLEMENTATIONS[op]
    forced = _parse(_setting).get(op) if _setting else None
    if forced is not None:
        reason = implementations[forced].reason_not_to_run(inputs)
        if reason is not None:
            raise ValueError(f'{op}: forced implementation {forced!r} cannot run: {reason}')
        return implementations[forced]
    for implementation in implementations.values():
        if implementation.reason_against(inputs) is None:
            return implementation
    raise ValueError(f'{op}: no implementation can run; {_explain(op, inputs)}')


def _explain(op: str, inputs: Any) -> str:
    implementations = _IMPLEMENTATIONS[op].values()
    parts = (f'{i.name}: {i.reason_against(inputs) or "can run"}' for i in implementations)
    return f'{op} ({"; ".join(parts)})'


def _parse(setting: str) -> dict[str, str]:
    """Maps each op to its forced implementation, e.g. 'reference' or 'op=plain,other=reference'."""
    forced: dict[str, str] = {}
    for item in filter(None, setting.split(',')):
        op, equals, name = item.strip().partition('=')
        candidates, name = ([op], name) if equals else (list(_IMPLEMENTATIONS), op)
        matches = [o for o in candidates if name in _IMPLEMENTATIONS.get(o, {})]
        if not matches:
            known = [f'{o}={n}' for o, implementations in names().items() for n in implementations]
            raise ValueError(
                f'{ENV_NAME}: {item!r} names no implementation; there are {", ".join(known)}'
            )
        forced.update(dict.fromkeys(matches, name))
    return forced


def is_exporting() -> bool:
    """Whether the run is traced for all input sizes (``torch.export``, ONNX, ``torch.jit.trace``).

    Tracing keeps only the branch that this input takes: while exporting, take the branch that is
    correct for every size.
    """
    return is_torch_exporting() or (not is_compiling() and torch.jit.is_tracing())


def is_traced() -> bool:
    """Whether the run is traced, by ``torch.compile`` or for export.

    While tracing, a branch on the size of the input gives one graph for each side.
    """
    return is_compiling() or is_exporting()


def precise_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if one of the tensors has it, else float32."""
    # Not torch.promote_types, which torch.compile of torch 2.1 cannot trace.
    return torch.float64 if torch.float64 in [t.dtype for t in tensors] else torch.float32


def as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Tensors of the CPU as autocast, if enabled, converts the operands of a product."""
    if not torch.is_autocast_cpu_enabled():
        return tensors
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4; the older name cannot be compiled
        dtype = torch.get_autocast_dtype('cpu')
    else:
        dtype = torch.get_autocast_cpu_dtype()
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Context in which autocast does not change operations on the device of ``x``."""
    if x.device.type == 'meta':  # used to count FLOPs; autocast does not know it
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)

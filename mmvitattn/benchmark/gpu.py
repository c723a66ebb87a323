"""Are the Triton kernels correct on this device? Checks that go on after a failure.

Output and gradients of each op, by its kernels, against the reference in float64. The tests of the
kernels are in ``tests/test_ops/test_triton_kernels.py``; this needs no test runner and covers real
sizes, for a machine that has little but PyTorch.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvitattn.ops import (
    force,
    key_only_attention,
    learned_query_attention,
    local_shift_attention,
    reference,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Largest error allowed, relative to the largest value, or to 1 where all are smaller.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
SCALES = (1.0, 1e4)  # of the scores
Op = Callable[..., Tensor]


class Case(NamedTuple):
    """An op at one size: its two forms as functions of the tensors."""

    what: str
    by_kernels: Op
    by_reference: Op
    tensors: list[Tensor]


class Check(NamedTuple):
    """What came out of one case in one type."""

    what: str
    dtype: str
    error: float  # NaN where it failed to run
    bound: float
    message: str = ''

    @property
    def passed(self) -> bool:
        """Whether it ran, and the error is small enough."""
        return self.error <= self.bound  # False for NaN


def run_checks(device: torch.device, quick: bool = False) -> Iterator[Check]:
    """Runs every case in every type.

    Args:
        device: a CUDA device, or the CPU with Triton's interpreter.
        quick: only tiny sizes, for the interpreter.

    Yields:
        The checks, one by one.
    """
    for case, dtype in itertools.product(_cases(quick), DTYPES):
        name, bound = str(dtype).removeprefix('torch.'), BOUNDS[dtype]
        try:
            yield Check(case.what, name, _error(case, device, dtype), bound)
        except Exception as error:  # reported; the others go on
            message = f'{type(error).__name__}: {(str(error).splitlines() or [""])[0]}'
            yield Check(case.what, name, float('nan'), bound, message)


def _error(case: Case, device: torch.device, dtype: torch.dtype) -> float:
    """Largest relative error of the output and of all gradients."""
    ours = [t.to(device, dtype).requires_grad_() for t in case.tensors]
    exact = [t.detach().double().requires_grad_() for t in ours]
    with force('triton'):
        output = case.by_kernels(*ours)
        direction = torch.randn(output.shape, dtype=torch.float32).to(output)
        gradients = _gradients(output, ours, direction)
    expected = case.by_reference(*exact)
    truths = _gradients(expected, exact, direction.double())
    errors = []
    for actual, truth in zip((output, *gradients), (expected, *truths), strict=True):
        difference = (actual.double() - truth).abs().max()
        errors.append((difference / truth.abs().max().clamp_min(1.0)).item())
    return max(errors) if all(e == e for e in errors) else float('nan')


def _gradients(output: Tensor, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
    """Zeros for an input that has no influence, such as the bias of SAG's keys."""
    found = torch.autograd.grad(output, inputs, direction, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _cases(quick: bool) -> Iterator[Case]:
    torch.manual_seed(0)
    yield from _windows(quick)
    yield from _key_only(quick)
    yield from _shifts(quick)


def _windows(quick: bool) -> Iterator[Case]:
    sizes = [(3, 4)] if quick else [(7, 9), (56, 56), (101, 67)]
    sides = (3,) if quick else (3, 7)
    for size, k, stride, scale in itertools.product(sizes, sides, (1, 2), SCALES):
        heads, dim, queries = (1, 3, 2) if quick else (8, 8, 2)
        scores = scale * torch.randn(2, *size, queries, heads)
        tables = [torch.randn(k * k, queries, heads) for _ in range(2)]
        yield Case(
            f'learned_query_attention, {size[0]} x {size[1]}, k = {k}, stride {stride}, '
            f'scores of {scale:g}',
            _of_window(learned_query_attention, k, stride),
            _of_window(reference.learned_query_attention, k, stride),
            [scores, torch.randn(2, *size, heads, dim), *tables],
        )


def _key_only(quick: bool) -> Iterator[Case]:
    sizes = [(37, 2, 3)] if quick else [(3136, 1, 64), (999, 7, 11), (66800, 1, 32)]
    for (positions, heads, dim), scale in itertools.product(sizes, SCALES):
        channels = heads * dim
        yield Case(
            f'key_only_attention, {positions} positions, {heads} x {dim} channels, '
            f'scores of {scale:g}',
            _of_affines(key_only_attention, 2),
            _of_affines(reference.key_only_attention, 2),
            [
                torch.randn(2, positions, channels),
                scale * torch.randn(heads, dim),
                *_affines([channels] * 4, channels),
            ],
        )


def _shifts(quick: bool) -> Iterator[Case]:
    sizes = [(3, 2, 4, (2, 3))] if quick else [(10, 2, 32, (56, 56)), (18, 3, 7, (9, 13))]
    for (variants, heads, dim, grid), shared in itertools.product(sizes, (False, True)):
        channels, inner = heads * dim, dim if shared else heads * dim
        yield Case(
            f'local_shift_attention, {variants} variants of {grid[0]} x {grid[1]}, {heads} x {dim} '
            f'channels, {"shared" if shared else "own"} keys',
            _of_affines(local_shift_attention, 1, heads),
            _of_affines(reference.local_shift_attention, 1, heads),
            [
                torch.randn(variants, 2, *grid, channels),
                *_affines([channels, inner, inner], channels),
            ],
        )


def _of_window(op: Op, kernel_size: int, stride: int) -> Op:
    return lambda *tensors: op(*tensors, kernel_size, stride)


def _affines(rows: Sequence[int], channels: int) -> list[Tensor]:
    """Weights and biases of linear layers, one after another."""
    shapes = [shape for n in rows for shape in ((n, channels), (n,))]
    return [torch.randn(shape) / channels ** (0.5 * (len(shape) - 1)) for shape in shapes]


def _of_affines(op: Op, first: int, *others: int) -> Op:
    """An op as a function of tensors: weights and biases in pairs after the ``first`` ones."""

    def run(*tensors: Tensor) -> Tensor:
        pairs = zip(tensors[first::2], tensors[first + 1 :: 2], strict=True)
        return op(*tensors[:first], *pairs, *others)

    return run

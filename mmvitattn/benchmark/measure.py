"""Measures groups of cases: peak memory in processes of their own first, then time.

In each round of timing every contestant runs once, in random order, so that disturbances of the
machine affect all of them alike; ratios are formed within a round.
"""

import dataclasses
import functools
import gc
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..process import KEEP_FREED, mallopt
from . import BACKWARD, Case, Group, Unavailable, machine
from .models import CONTESTANTS

SEED = 0
# Largest difference of contestants that compute the same, relative to the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
SHORTEST_SAMPLE = 0.02  # seconds; faster calls are repeated within a sample
MOST_REPEATS, MOST_ROUNDS = 100, 30


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    threads: int = 1  # of the CPU
    seconds: float = 3.0  # for the rounds of one case in one mode
    rounds: int | None = None  # default: as many as fit, at least the group's own
    measures_memory: bool = True  # and FLOPs


class Call:
    """A contestant and its input; calling it runs one forward, or forward and backward.

    Forward: evaluation mode, under inference mode. Forward and backward: training mode, from random
    output gradients to those of all parameters (and of the input, unless that is an image).

    Raises:
        Unavailable: if the contestant cannot be built here.
    """

    def __init__(self, group: Group, case: Case, name: str, mode: str, options: Options) -> None:
        device, dtype = options.device, options.dtype
        self.trains = mode == BACKWARD
        torch.manual_seed(SEED)  # contestants that compute the same get the same weights
        module = CONTESTANTS[name].build(dataclasses.replace(case.size, training=self.trains))
        cast = None if group.autocast else dtype
        self.module = module.to(device, cast).train(self.trains)
        torch.manual_seed(SEED)
        self.inputs = [
            torch.randn(shape).to(device, cast).requires_grad_(self.trains and not group.images)
            for shape in group.input_shapes(case)
        ]
        autocast = group.autocast and dtype != torch.float32
        self.autocast = (device.type, dtype) if autocast else None
        self.output_grads: list[Tensor] = []
        self.moved_bytes = 0

    def __call__(self) -> None:
        """Runs it once; gradients are dropped at the end."""
        outputs = self.outputs()
        if not self.trains:
            return
        if not self.output_grads:
            self.output_grads = [torch.randn_like(output) for output in outputs]
        torch.autograd.backward(outputs, self.output_grads)
        self.module.zero_grad(set_to_none=True)
        for tensor in self.inputs:
            tensor.grad = None

    def outputs(self) -> list[Tensor]:
        """Runs only the forward."""
        grads = nullcontext() if self.trains else torch.inference_mode()
        with grads, self._types():
            outputs, _ = tree_flatten(self.module(*self.inputs))  # may be nested
        # What must move at least: inputs and outputs, and in the backward their gradients.
        self.moved_bytes = sum(t.nbytes for t in (*self.inputs, *outputs)) * (1 + self.trains)
        return outputs

    def count_flops(self) -> int:
        """FLOPs of matrix products and convolutions, 2 per multiply-add.

        Counted in the forward in evaluation mode; forward and backward count as three times that,
        since the backward has two products for each one.
        """
        counter = FlopCounterMode(display=False, custom_mapping=_SDPA_ON_CPU)
        self.module.eval()
        with counter, torch.no_grad(), self._types():  # torch 2.1 does not count in inference mode
            counted = getattr(self.module, 'counted', self.module)
            counted(*(tensor.detach() for tensor in self.inputs))
        self.module.train(self.trains)
        return counter.get_total_flops() * (3 if self.trains else 1)

    def _types(self) -> AbstractContextManager:
        return torch.autocast(*self.autocast) if self.autocast else nullcontext()


def _sdpa_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_, **__) -> int:
    """Of both products, from shapes (B, h, N, d)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# The CPU's kernel, which PyTorch's counter does not know; torch 2.1 has another.
_SDPA = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', None)
_SDPA_ON_CPU = {_SDPA: _sdpa_flops} if _SDPA else {}


@dataclasses.dataclass
class Measurement:
    """What was measured of one contestant in one case and mode."""

    group: str
    case: str
    place: float
    mode: str
    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    speedups: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int | None = None
    flops: int | None = None
    moved_bytes: int = 0
    difference: float | None = None
    left_out: str | None = None

    @property
    def failed(self) -> bool:
        """Whether it should have run and did not, or computed something else."""
        return self.left_out is not None and self.left_out.startswith('failed')

    @property
    def time(self) -> float:
        """Median seconds; NaN where it did not run."""
        return quartiles(self.seconds)[0] if self.seconds else math.nan

    def least_seconds(self, rates: Mapping[str, float]) -> float:
        """Lower bound: bytes at the rate of a copy, or FLOPs at that of a matrix product."""
        by_copy = self.moved_bytes / rates['copy_bytes']
        return max(by_copy, (self.flops or 0) / rates['matmul_flops'])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
    return median, lower, upper


def run(groups: Sequence[Group], options: Options) -> list[Measurement]:
    """Measures everything: each contestant in each case and mode, in their order."""
    cases = []
    for group in groups:
        for case, mode in ((c, mode) for c in group.cases for mode in c.modes):
            place = (group.key, case.label, group.place(case), mode)
            cases.append(([Measurement(*place, name) for name in case.names], group, case))
    if options.measures_memory and options.device.type == 'cpu':
        for measurements, group, case in tqdm(cases, desc='peak memory', unit='case'):
            _measure_memory(measurements, group, case, options)
    torch.set_num_threads(options.threads)  # no thread may start before the last child has
    mallopt(KEEP_FREED)
    for measurements, group, case in tqdm(cases, desc='time', unit='case'):
        _measure_time(measurements, group, case, options)
        machine.trim()
    return [m for measurements, *_ in cases for m in measurements]


def _measure_memory(
    measurements: list[Measurement], group: Group, case: Case, options: Options
) -> None:
    for m in measurements:
        try:
            m.peak_bytes, m.flops = machine.in_child(
                options.threads, _peak_and_flops, group, case, m.name, m.mode, options
            )
        except Unavailable as reason:
            m.left_out = str(reason)


def _peak_and_flops(
    group: Group, case: Case, name: str, mode: str, options: Options
) -> tuple[int | None, int]:
    call = Call(group, case, name, mode, options)
    flops = call.count_flops()
    if call.trains:
        call()  # loads the code of the backward
    return machine.peak_on_cpu(call), flops


def _measure_time(
    measurements: list[Measurement], group: Group, case: Case, options: Options
) -> None:
    device = options.device
    torch.compiler.reset()  # the compiler stops specialising after a few sizes of the same code
    calls, expected = {}, {}
    for m in measurements:
        if m.left_out is not None:
            continue
        try:
            call = Call(group, case, m.name, m.mode, options)
            expected[m.name] = machine.warm_up(call, device)
            if device.type == 'cuda' and options.measures_memory:
                m.peak_bytes, m.flops = machine.peak_on_gpu(call), call.count_flops()
            m.moved_bytes = call.moved_bytes
            calls[m.name] = call
        except Unavailable as reason:
            m.left_out = str(reason)
        except torch.cuda.OutOfMemoryError:
            call = None
            torch.cuda.empty_cache()
            m.left_out = 'the memory of the GPU does not suffice'
        except Exception as error:
            # A long run does not end because of one contestant; the tables and the exit status
            # show the error.
            m.left_out = machine.failure(error)
    _compare(measurements, calls, options.dtype)
    calls = {m.name: calls[m.name] for m in measurements if m.left_out is None}
    if not calls:
        return
    least, seconds = group.least_rounds, options.seconds
    if options.rounds is not None:
        least, seconds = options.rounds, 0.0
    times = interleave(calls, expected, seconds, least, device)
    for m in measurements:
        m.seconds = times.get(m.name, [])
        if m.seconds and group.baseline in times:
            m.speedups = [b / t for b, t in zip(times[group.baseline], m.seconds, strict=True)]


def _compare(
    measurements: Iterable[Measurement], calls: Mapping[str, Call], dtype: torch.dtype
) -> None:
    """Compares the contestants that compute the same; one that does not has failed."""

    @functools.cache
    def outputs(name: str) -> list[Tensor]:
        with torch.no_grad():
            return [output.float() for output in calls[name].outputs()]

    for m in measurements:
        twin = CONTESTANTS[m.name].same_as
        if m.name not in calls or twin not in calls:
            continue
        m.difference = max(
            ((ours - theirs).abs().max() / theirs.abs().max()).item()
            for ours, theirs in zip(outputs(m.name), outputs(twin), strict=True)
        )
        if not m.difference <= TOLERANCE[dtype]:
            m.left_out = f'failed: differs from {twin} by {m.difference:.1e}'


def interleave(
    calls: Mapping[str, Callable[[], object]],
    expected: Mapping[str, float],
    seconds: float,
    least_rounds: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Times calls in rounds: seconds per call, one figure per round, by name.

    All rounds together take at most ``seconds``, estimated from the ``expected`` seconds of each
    call; ``least_rounds`` are run even if they take longer.
    """
    repeats = {
        name: min(MOST_REPEATS, max(1, math.ceil(SHORTEST_SAMPLE / max(expected[name], 1e-9))))
        for name in calls
    }
    per_round = sum(repeats[name] * expected[name] for name in calls)
    rounds = max(least_rounds, min(MOST_ROUNDS, int(seconds / max(per_round, 1e-9))))
    order = list(calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                times[name].append(machine.sample(calls[name], repeats[name], device))
    finally:
        gc.enable()
    return times

"""Interleaved timing: in each round every contestant runs once, in an order of its own.

What disturbs the machine then disturbs all of them alike, and ratios are formed within a round.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

SHORTEST_SAMPLE = 0.02  # seconds; faster calls are repeated within a sample
MOST_REPEATS, MOST_ROUNDS = 100, 30
ANOTHER_WARM_UP = 2.0  # seconds; calls slower than this are warm after one

Calls = Mapping[str, Callable[[], None]]


def warm_up(call: Callable[[], None], device: torch.device) -> float:
    """Calls until buffers, caches and compiled code are there; seconds of the last call."""
    elapsed = sample(call, 1, device)
    return sample(call, 1, device) if elapsed < ANOTHER_WARM_UP else elapsed


def sample(call: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Mean seconds of consecutive calls.

    Args:
        call: what is timed.
        repeats: number of calls.
        device: where it computes; a GPU is timed by its own events.
    """
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleave(
    calls: Calls,
    expected: Mapping[str, float],
    seconds: float,
    least_rounds: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Times all calls in rounds.

    Args:
        calls: what is timed, by name.
        expected: about how many seconds a call takes, by name.
        seconds: time that all rounds together may take.
        least_rounds: rounds that are run even if they take longer.
        device: where the calls compute.

    Returns:
        Seconds of a call, one figure a round, by name.
    """
    repeats = {
        name: min(MOST_REPEATS, max(1, math.ceil(SHORTEST_SAMPLE / max(expected[name], 1e-9))))
        for name in calls
    }
    of_a_round = sum(repeats[name] * expected[name] for name in calls)
    rounds = max(least_rounds, min(MOST_ROUNDS, int(seconds / max(of_a_round, 1e-9))))
    order, times = list(calls), {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                times[name].append(sample(calls[name], repeats[name], device))
    finally:
        gc.enable()
    return times


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
    return median, lower, upper


def speedups(baseline: list[float], times: list[float]) -> list[float]:
    """How many times as fast as the baseline, round by round."""
    return [b / t for b, t in zip(baseline, times, strict=True)]

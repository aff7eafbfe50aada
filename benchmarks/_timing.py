"""Times of calls, taken in turns, so that a machine that slows down or speeds up does so for all of them."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample per round."""

    median: float
    q1: float
    q3: float


def spread(samples: Sequence[float]) -> Spread:
    """Return the median and the quartiles.

    Example:
        >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
        Spread(median=3.0, q1=2.0, q3=4.0)
    """
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Return how many times longer one took than the other, round by round."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def interleave(
    calls: Mapping[K, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    device: str = "cpu",
) -> dict[K, list[float]]:
    """Time several calls in turns: A B A B and so on.

    Every call runs twice before, so that compilers, allocators and caches settle. A sample repeats its call for at
    least ``seconds``, as often in each round.

    Args:
        calls: What to time, by any key.
        rounds: Samples of each.
        seconds: Length of a sample; 0 for a single call.
        device: "cpu" or "cuda". On the latter, events on the device's own clock are taken.

    Returns:
        Seconds per call, one for each round, by the same keys.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, math.ceil(seconds / seconds_of(call, device=device)))
    samples: dict[K, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds_of(call, repeats[name], device))
    return samples


def seconds_of(call: Callable[[], object], repeats: int = 1, device: str = "cpu") -> float:
    """Return the mean seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats

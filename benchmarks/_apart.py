"""Times of calls in processes of their own, taken in turns.

In one process, runtimes disturb each other: the threads of one spin for a while after its work, and take the processor
from the other.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import TypeVar

from ._timing import seconds_of

K = TypeVar("K", bound=Hashable)
Call = Callable[[], object]

_call: Call  # of this process


@contextmanager
def processes(keys: Iterable[K]) -> Iterator[dict[K, ProcessPoolExecutor]]:
    """Start a process for each key, without what this one has imported, and end them all at the end."""
    with ExitStack() as stack:
        yield {
            key: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            for key in dict.fromkeys(keys)
        }


def interleave_apart(
    executors: Mapping[K, ProcessPoolExecutor],
    makers: Mapping[K, Callable[[], Call]],
    *,
    rounds: int,
    seconds: float,
) -> tuple[dict[K, list[float]], dict[K, str]]:
    """Time calls in turns, each in its process: A B A B and so on.

    Args:
        executors: What ``processes`` gave.
        makers: What makes each call in its process. They are pickled.
        rounds: Samples of each.
        seconds: Length of a sample; 0 for a single call.

    Returns:
        Seconds per call, one for each round, by the same keys; and for those that a package is missing for, which.
    """
    missing = {}
    made = {key: executors[key].submit(_make, make) for key, make in makers.items()}
    for key, future in made.items():
        try:
            future.result()
        except ImportError as error:
            missing[key] = str(error)
    there = [key for key in makers if key not in missing]
    repeats = {key: executors[key].submit(_repeats, seconds).result() for key in there}
    samples: dict[K, list[float]] = {key: [] for key in there}
    for _ in range(rounds):
        for key in there:
            samples[key].append(executors[key].submit(_sample, repeats[key]).result())
    return samples, missing


def _make(make: Callable[[], Call]) -> None:
    global _call
    _call = make()
    _call()  # compilers compile now, while other processes do the same


def _repeats(seconds: float) -> int:
    _call()
    return max(1, math.ceil(seconds / seconds_of(_call)))


def _sample(repeats: int) -> float:
    return seconds_of(_call, repeats)

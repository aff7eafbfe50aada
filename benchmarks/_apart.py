"""Times of calls in processes of their own, taken in turns.

In one process, runtimes disturb each other: the threads of one spin for a while after its work, and take the processor
from the other.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import torch

from ._memory import peak_bytes
from ._timing import seconds_of

K = TypeVar("K", bound=Hashable)
Call = Callable[[], Any]

_call: Call  # of this process


@dataclass(frozen=True)
class Times(Generic[K]):
    """Times of several calls.

    Attributes:
        samples: Seconds per call, one for each round.
        outputs: What each call returned first; tensors as float32 arrays.
        missing: Why a call could not be made: a package is missing, or the memory does not suffice.
    """

    samples: dict[K, list[float]]
    outputs: dict[K, Any]
    missing: dict[K, str]


@contextmanager
def processes(keys: Iterable[K]) -> Iterator[dict[K, ProcessPoolExecutor]]:
    """Start a process for each key, without the modules that this one has imported, and end them all at the end."""
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
    device: str = "cpu",
) -> Times[K]:
    """Time calls in turns, each in its process: A B A B and so on.

    Args:
        executors: The processes that ``processes`` started.
        makers: Functions that make the calls, each in its process. They are pickled.
        rounds: Samples of each.
        seconds: Length of a sample; 0 for a single call.
        device: "cpu" or "cuda".
    """
    outputs, missing = {}, {}
    made = {key: executors[key].submit(_make, make) for key, make in makers.items()}
    for key, future in made.items():
        try:
            outputs[key] = future.result()
        except (ImportError, torch.OutOfMemoryError) as error:
            missing[key] = str(error)
    repeats = {key: executors[key].submit(_repeats, seconds, device).result() for key in outputs}
    samples: dict[K, list[float]] = {key: [] for key in outputs}
    for _ in range(rounds):
        for key in outputs:
            samples[key].append(executors[key].submit(_sample, repeats[key], device).result())
    return Times(samples, outputs, missing)


def peak_apart(executor: ProcessPoolExecutor, device: str) -> int:
    """Return the bytes that the call of a process, a ``TrainingStep``, needs at most."""
    return executor.submit(_peak, device).result()


def _make(make: Callable[[], Call]) -> Any:
    global _call
    _call = make()
    output = _call()  # compilers compile now, while other processes do the same
    return output.float().cpu().numpy() if isinstance(output, torch.Tensor) else output


def _repeats(seconds: float, device: str) -> int:
    _call()
    return max(1, math.ceil(seconds / seconds_of(_call, device=device)))


def _sample(repeats: int, device: str) -> float:
    return seconds_of(_call, repeats, device)


def _peak(device: str) -> int:
    return peak_bytes(_call, device)

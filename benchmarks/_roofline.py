"""The roofline: the time that a device's measured rates leave to the operators of a step, one after the other."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ._operators import Operator
from ._steps import DTYPES
from ._timing import interleave


@dataclass(frozen=True)
class Rates:
    """What a device was measured to do.

    Attributes:
        flops: Floating-point operations per second of a large matrix product.
        bytes: Bytes per second of a large copy, reads and writes counted.
    """

    flops: float
    bytes: float


def measure_rates(device: str, dtype: str, *, matrix: int | None = None, copy: int | None = None) -> Rates:
    """Measure the two ceilings of a device.

    Args:
        device: "cpu" or "cuda".
        dtype: Type of the matrices: a key of ``DTYPES``.
        matrix: Side of the square matrices; by default large enough to fill the device.
        copy: Bytes that are copied; by default many times what caches hold.
    """
    matrix = matrix or (8192 if device == "cuda" else 2048)
    copy = copy or (1 << 30 if device == "cuda" else 1 << 28)
    # Random numbers: products of zeros run faster on some devices.
    a, b = (torch.randn(matrix, matrix, device=device).to(DTYPES[dtype]) for _ in range(2))
    source = torch.rand(copy // 4, device=device)
    target = torch.empty_like(source)
    times = interleave(
        {"matmul": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}, rounds=3, seconds=0.2, device=device
    )
    return Rates(flops=2 * matrix**3 / min(times["matmul"]), bytes=2 * source.nbytes / min(times["copy"]))


def least_seconds(operators: Iterable[Operator], rates: Rates) -> float:
    """Seconds below which the operators cannot run one by one: each takes its arithmetic or its traffic.

    A compiler that merges operators saves traffic, so this is no bound for it. A step whose tensors stay in a cache
    may beat it too.

    Example:
        >>> least_seconds([Operator("mm", 100, 10, 5), Operator("relu", 0, 40, 5)], Rates(flops=10, bytes=20))
        12.0
    """
    return sum(max(operator.flops / rates.flops, operator.bytes / rates.bytes) for operator in operators)

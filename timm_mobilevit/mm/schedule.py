"""A warm-up that fits short trainings too."""

from typing import Any

from mmengine.optim import LinearLR
from mmengine.registry import PARAM_SCHEDULERS

_ENDLESS = int(1e9)  # mmengine's, where a scheduler is built without a training
_SHORTEST = 2  # iterations: mmengine's LinearLR with a single one never leaves its first learning rate


@PARAM_SCHEDULERS.register_module()
class WarmUpLR(LinearLR):  # type: ignore[misc]
    """Linear warm-up over a number of iterations, or over a share of the training where that is less.

    A recipe for hundreds of thousands of iterations warms up over a few hundred. In a training of a few hundred
    iterations, that warm-up would be all of it.

    Args:
        optimizer: Optimizer, or its wrapper.
        iterations: Length of the warm-up.
        share: Largest part of the training that it takes, in (0, 1].
        end: Iterations of the training. mmengine's runner sets it.
        by_epoch: False in every config: from it, the runner knows to give ``end`` in iterations.
        **kwargs: As for ``mmengine.optim.LinearLR``: ``start_factor``, ``end_factor``, ``verbose``, …

    Raises:
        ValueError: If an argument has a value that it does not take.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> [
        ...     WarmUpLR(optimizer, iterations=500, start_factor=0.1, by_epoch=False, end=length).end
        ...     for length in (100_000, 400)
        ... ]
        [500, 40]
    """

    def __init__(
        self,
        optimizer: Any,
        iterations: int,
        share: float = 0.1,
        *,
        end: int = _ENDLESS,
        by_epoch: bool = True,
        **kwargs: Any,
    ) -> None:
        if by_epoch:
            raise ValueError("WarmUpLR counts iterations: set by_epoch=False")
        if iterations < 1 or not 0 < share <= 1:
            raise ValueError(f"expected iterations from 1 and a share in (0, 1], got {iterations} and {share}")
        length = max(min(iterations, int(share * end)), _SHORTEST)
        super().__init__(optimizer, end=length, by_epoch=False, **kwargs)

"""What batch norm says of a batch that it cannot learn from, in words that say what to change."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_PYTORCHS = "Expected more than 1 value per channel"


@contextmanager
def naming_the_batch(part: Any, maps: Tensor | Sequence[Tensor]) -> Iterator[None]:
    """Name the batch size where a norm in training gets one value per channel: one image, and a map of one pixel.

    Args:
        part: The module whose norms run inside.
        maps: What it gets, [B, C, H, W]; the first one counts.

    Raises:
        ValueError: In place of PyTorch's, which names a shape from deep inside.
    """
    try:
        yield
    except ValueError as error:
        if _PYTORCHS not in str(error):
            raise
        images, _, height, width = (maps if isinstance(maps, Tensor) else maps[0]).shape
        raise ValueError(
            f"batch norm in {type(part).__name__} cannot train on a batch of {images} image (its input is "
            f"{height}×{width}): a map of one pixel leaves it one value per channel. Train with two or more images per "
            "GPU (train_dataloader.batch_size=2, and drop_last=True for the last batch), with larger images if maps "
            "become one pixel too early, or with a norm that needs no batch (norm_cfg=dict(type='GN', num_groups=32))"
        ) from error

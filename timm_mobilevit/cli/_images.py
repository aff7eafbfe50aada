"""Loading and classifying images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from torch import Tensor, nn

from .._images import UnreadableImageError, image_mode, read_image
from ..inference.optimize import optimize_for_inference

T = TypeVar("T")

NOT_FINITE = "the model's outputs are not finite: its weights, or the mean and std that it goes with, are no good"


@dataclass(frozen=True)
class Guess:
    """One of the classes that a model finds most likely.

    Attributes:
        index: Number of the class.
        label: Name of the class.
        probability: Softmax of the logits, in [0, 1].
    """

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """Result for one image.

    Attributes:
        image: Path of the image.
        top: The most likely classes, best first; empty if there is an error.
        error: Why the image could not be read, or that the outputs are not finite; None if all went well.
    """

    image: str
    top: Sequence[Guess] = ()
    error: str | None = None


def classify(
    model: nn.Module,
    images: Sequence[Path],
    names: Sequence[str],
    *,
    topk: int = 5,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    data_args: dict[str, Any] | None = None,
) -> Iterator[Prediction]:
    """Classify images with the preprocessing that belongs to the model.

    Args:
        model: A timm model for images of one or three channels.
        images: Files to read.
        names: Name of each class.
        topk: How many classes to tell at most.
        batch_size: How many images go through the model at once.
        device: Where the model runs, as torch names devices.
        dtype: ``torch.bfloat16`` to run ``optimize_for_inference(model, dtype=torch.bfloat16)``.
        data_args: What to change in the preprocessing, as ``timm.data.resolve_input_data_config`` takes it.

    Yields:
        One prediction per image, in order. An image that cannot be read, or whose outputs are not finite,
        does not stop the others.

    Raises:
        ValueError: If the device cannot be used, or the model has another number of input channels.
    """
    config = resolve_input_data_config(model, data_args)
    mode = image_mode(config["input_size"][0])
    transform = create_transform(**config)
    model = model.eval().to(usable_device(device))
    if dtype is not None:
        model = optimize_for_inference(model, dtype=dtype)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        loaded = [load_image(path, mode, transform) for path in batch]
        tensors = [item for item in loaded if isinstance(item, Tensor)]
        guesses: Iterator[tuple[Guess, ...]] = (
            iter(_top(model, torch.stack(tensors).to(device), names, topk)) if tensors else iter(())
        )
        for path, item in zip(batch, loaded, strict=True):
            if isinstance(item, Tensor):
                top = next(guesses)
                yield Prediction(str(path), top=top, error=None if top else NOT_FINITE)
            else:
                yield Prediction(str(path), error=item)


def usable_device(device: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: If it cannot be used here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: built without CUDA
        raise ValueError(f"device {device!r} cannot be used here: {error}") from error


def load_image(path: Path, mode: str, transform: Callable[[Image.Image], T]) -> T | str:
    """Return the transformed image, or the reason why it cannot be read."""
    try:
        return read_image(path, mode, transform)
    except UnreadableImageError as error:
        return str(error)


@torch.inference_mode()
def _top(model: nn.Module, x: Tensor, names: Sequence[str], topk: int) -> list[tuple[Guess, ...]]:
    """Return the most likely classes of each image of a batch [B, C, H, W]; none where an output is not finite."""
    logits = model(x).float()
    probabilities, indices = logits.softmax(-1).topk(min(topk, len(names)))
    return [
        tuple(Guess(i, names[i], p) for i, p in zip(row_indices, row, strict=True)) if finite else ()
        for row_indices, row, finite in zip(
            indices.tolist(), probabilities.tolist(), logits.isfinite().all(-1).tolist(), strict=True
        )
    ]

"""Loading and classifying images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_input_data_config
from torch import Tensor, nn

from .._images import UnreadableImageError, image_mode, read_image
from ..inference.optimize import optimize_for_inference

NOT_FINITE = "the model's outputs are not finite: its weights, or the mean and std that it goes with, are no good"


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
) -> Iterator[dict[str, Any]]:
    """Classify images with the preprocessing that belongs to the model.

    ``data_args`` change it, as ``timm.data.resolve_input_data_config`` takes them; with a ``dtype``, the model is
    optimized for inference.

    Yields:
        One dictionary per image, in order: ``image``, and ``top``, the most likely classes, each with its ``index``,
        ``label`` and ``probability``; or ``error``, if the image cannot be read or its outputs are not finite.

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
        entries: list[dict[str, Any]] = [{"image": str(path)} for path in images[start : start + batch_size]]
        tensors: list[Tensor] = []
        for entry in entries:
            try:
                tensors.append(read_image(entry["image"], mode, transform))
            except UnreadableImageError as error:
                entry["error"] = str(error)
        read = [entry for entry in entries if "error" not in entry]
        if read:
            for entry, top in zip(read, _top(model, torch.stack(tensors).to(device), names, topk), strict=True):
                entry |= {"top": top} if top else {"error": NOT_FINITE}
        yield from entries


def usable_device(device: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: If it cannot be used here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: built without CUDA
        raise ValueError(f"device {device!r} cannot be used here: {error}") from error


@torch.inference_mode()
def _top(model: nn.Module, x: Tensor, names: Sequence[str], topk: int) -> list[list[dict[str, Any]]]:
    """Return the most likely classes of each image of a batch [B, C, H, W]; none where an output is not finite."""
    logits = model(x).float()
    found = zip(*(values.tolist() for values in logits.softmax(-1).topk(min(topk, len(names)))), strict=True)
    return [
        [{"index": i, "label": names[i], "probability": p} for p, i in zip(*row, strict=True)] if finite else []
        for row, finite in zip(found, logits.isfinite().all(-1), strict=True)
    ]

"""Images that eight bits measure the ranges of activations on, and how near the outputs stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from .._images import UnreadableImageError, find_images, image_mode, read_image

DATA_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")

# Files whose sums are exact are above, of all models: with random weights, which say little about an image, at least
# 0.85, with weights trained on the digits 0.999. Files whose sums are clamped are anywhere from 0.2 to 0.998.
MIN_CORRELATION = 0.8
NUM_COMPARED = 16


@dataclass(frozen=True)
class QuantizationLoss:
    """What a quantised file lost, on images of the calibration folder and on the processor that it was made on.

    Attributes:
        correlation: Of the outputs with those in float32, over all images, in [-1, 1]; the lowest where there are
            several outputs.
        num_images: How many images were compared.
    """

    correlation: float
    num_images: int


def draw_images(facts: Mapping[str, Any], folder: Path, count: int = 128) -> list[Tensor]:
    """Images [1, C, H, W] of a folder, at any depth, as the model with these facts takes them.

    They are drawn evenly: a folder of classes is in their order.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, one of them cannot be read, or the model does not say its mean and standard
            deviation, or takes no images.
    """
    if missing := [key for key in ("mean", "std") if key not in facts]:
        raise ValueError(
            f"calibration needs the {' and '.join(missing)} of the images, which the model does not know; set them in "
            "its pretrained_cfg"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; quantisation measures the ranges of the activations on images: expected a folder of "
            "a hundred or so of the kind that the model is for"
        )
    files = find_images([folder])
    config = resolve_data_config({key: facts[key] for key in DATA_KEYS if key in facts})
    mode, transform = image_mode(config["input_size"][0]), create_transform(**config)

    def read(file: Path) -> Tensor:
        try:
            return torch.as_tensor(read_image(file, mode, transform))[None]
        except UnreadableImageError as error:
            raise ValueError(f"cannot calibrate on {file}: {error}") from error

    return [read(files[index]) for index in np.linspace(0, len(files) - 1, min(count, len(files)), dtype=int)]


def some(images: list[Tensor]) -> list[Tensor]:
    """A few of the images, evenly, which a quantised file is compared on."""
    return images[:: max(1, len(images) // NUM_COMPARED)][:NUM_COMPARED]


def correlation(before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]]) -> float:
    """Correlation of the outputs of two models for the same images, the lowest where there are several outputs.

    It is nan where an output is the same everywhere, or not finite.

    Example:
        >>> round(correlation([[[1.0, 2.0]], [[3.0, 5.0]]], [[[2.0, 4.0]], [[6.0, 10.0]]]), 6)
        1.0
    """
    # By output, the values of all images.
    joined = [[np.concatenate([np.ravel(x) for x in part]) for part in zip(*of, strict=True)] for of in (before, after)]
    with np.errstate(all="ignore"):
        return float(np.min([np.corrcoef(pair)[0, 1] for pair in zip(*joined, strict=True)]))


def check_correlation(
    before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]], remedy: str = ""
) -> QuantizationLoss:
    """How near the outputs of a quantised file are to those in float32.

    Raises:
        ValueError: If their correlation is below what a quantised file must have.
    """
    found = correlation(before, after)
    if not found >= MIN_CORRELATION:  # nan is refused too
        raise ValueError(
            f"the quantised file is not written: on {len(before)} images of the calibration folder, the correlation of "
            f"its outputs with those of float32 is {found:.3f}, expected at least {MIN_CORRELATION}; "
            + (remedy or "calibrate on a hundred or so images of the kind that the model is for")
        )
    return QuantizationLoss(found, len(before))

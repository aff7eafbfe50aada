"""Images that eight bits measure the ranges of activations on, and how near the outputs stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from .._images import UnreadableImageError, evenly, find_images, image_mode, read_image
from ._metadata import find_mean_and_std

_DATA_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")

# With exact sums, files of all models are above: with random weights, which say little about an image, at least 0.85;
# with weights trained on the digits 0.999. Files whose sums are clamped are anywhere from 0.2 to 0.998.
MIN_CORRELATION = 0.8
_NUM_COMPARED = 16


@dataclass(frozen=True)
class QuantizationLoss:
    """What a quantized file lost, on images of the calibration folder and on the processor that it was made on.

    Attributes:
        correlation: Of the outputs with those in float32, over all images, in [-1, 1]; the lowest where there are
            several outputs.
        num_images: How many images were compared.
    """

    correlation: float
    num_images: int


def draw_images(metadata: Mapping[str, Any], folder: Path, count: int = 128) -> list[Tensor]:
    """Read images of a folder, at any depth, as a file with these metadata takes them, one in each batch.

    They are evenly spaced: a folder of classes is sorted by them.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, one of them cannot be read, or the model does not say its mean and standard
            deviation, or takes no images.
    """
    find_mean_and_std(metadata, "calibration")
    files = evenly(find_calibration_images(folder), count)
    config = resolve_data_config({key: metadata[key] for key in _DATA_KEYS if key in metadata})
    mode, transform = image_mode(config["input_size"][0]), create_transform(**config)

    def read(file: Path) -> Tensor:
        try:
            image = torch.as_tensor(read_image(file, mode, transform))[None]
        except UnreadableImageError as error:
            raise ValueError(f"cannot calibrate on {file}: {error}") from error
        return as_input(image, pictures=bool(metadata.get("image_input")))

    return [read(file) for file in files]


def find_calibration_images(folder: Path) -> list[Path]:
    """Find the images of a folder, at any depth.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; quantization measures the ranges of the activations on images: expected a folder of "
            "a hundred or so of the kind that the model is for"
        )
    return find_images([folder])


def as_input(images: Tensor, *, pictures: bool) -> Tensor:
    """Turn images [B, C, H, W] in [0, 1] into what a file takes: uint8 [B, H, W, C] if it takes pictures."""
    images = (255 * images).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1) if pictures else images
    return images.contiguous()  # runtimes read the memory as it lies


def few(images: Sequence[Tensor]) -> list[Tensor]:
    """Choose some of the images, evenly spaced, to compare a quantized file on."""
    return evenly(images, _NUM_COMPARED)


def correlation(before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]]) -> float:
    """Return the correlation of the outputs of two models for the same images, the lowest of several outputs.

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
    """Measure how near the outputs of a quantized file are to those in float32.

    Raises:
        ValueError: If their correlation is below what a quantized file must have.
    """
    found = correlation(before, after)
    if not found >= MIN_CORRELATION:  # nan is refused too
        raise ValueError(
            f"the quantized file is not written: on {len(before)} images of the calibration folder, the correlation of "
            f"its outputs with those of float32 is {found:.3f}, expected at least {MIN_CORRELATION}; "
            + (remedy or "calibrate on a hundred or so images of the kind that the model is for")
        )
    return QuantizationLoss(found, len(before))

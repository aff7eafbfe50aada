"""Images that quantisation measures the ranges of activations on, and how near its outputs stay."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor

from .quantize import DATA_KEYS, MIN_CORRELATION, QuantizationLoss, draw_images, find_calibration_images

NUM_COMPARED = 16  # images that a quantised file is compared on


def calibration_images(facts: Mapping[str, Any], folder: Path, *, num_images: int = 128) -> list[Tensor]:
    """Images [1, channels, height, width] of a folder, as the model takes them.

    Args:
        facts: What ``find_facts`` says of the model.
        folder: Images at any depth.
        num_images: How many at most; they are drawn evenly.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, they cannot be read, or the model does not say its mean and standard deviation.
    """
    if missing := [key for key in ("mean", "std") if key not in facts]:
        raise ValueError(
            f"calibration needs the {' and '.join(missing)} of the images, which the model does not know; set them in "
            "its pretrained_cfg"
        )
    config = resolve_data_config({key: facts[key] for key in DATA_KEYS if key in facts})
    return [torch.from_numpy(image) for image in draw_images(find_calibration_images(folder), config, num_images)]


def check_correlation(expected: list[Tensor], outputs: list[Tensor], path: Path) -> QuantizationLoss:
    """How near the outputs of a quantised file are to those of the model, one tensor for each image.

    Raises:
        ValueError: If their correlation is below what a quantised file must have.
    """
    before, after = (np.concatenate([tensor.numpy().ravel() for tensor in group]) for group in (expected, outputs))
    with np.errstate(all="ignore"):  # nan where all are equal, or one is not finite
        correlation = float(np.corrcoef(before, after)[0, 1])
    if not correlation >= MIN_CORRELATION:  # nan is refused too
        raise ValueError(
            f"{path} is not written: on {len(expected)} of the calibration images, the correlation of its outputs with "
            f"those of the model is {correlation:.3f}, expected at least {MIN_CORRELATION}; calibrate on a hundred or "
            "so images of the kind that the model is for"
        )
    return QuantizationLoss(correlation, len(expected))

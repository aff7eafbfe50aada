"""Images that quantisation measures the ranges of activations on, and how near its outputs stay."""

from pathlib import Path

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from .quantize import MIN_CORRELATION, QuantizationLoss, draw_images, open_folder

NUM_COMPARED = 16  # images that a quantised file is compared on


def calibration_images(
    model: nn.Module, folder: Path, input_size: tuple[int, int, int], *, num_images: int = 128
) -> list[Tensor]:
    """Images [1, channels, height, width] of a folder, as the model takes them.

    Args:
        model: A timm model.
        folder: Images at any depth.
        input_size: Channels, height and width.
        num_images: How many at most; they are drawn evenly.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, or they cannot be read.
    """
    config = resolve_data_config({}, model=model) | {"input_size": input_size}
    return [torch.from_numpy(image) for image in draw_images(open_folder(folder, config), num_images)]


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

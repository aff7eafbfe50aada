"""How far the outputs of a file are from those of the model that it was written from."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 1e-4  # of the standard deviation of an output, in float32
HALF_TOLERANCE = 0.1  # with weights in float16: rounding them alone moves random networks by up to 0.03 in PyTorch


def make_images(shape: Sequence[int]) -> Tensor:
    """Random images [batch, channels, height, width] in [0, 1], the same for the same shape."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def make_pixels(shape: Sequence[int]) -> Tensor:
    """Random pictures [batch, height, width, channels] as they are decoded, in uint8."""
    return torch.randint(256, tuple(shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_list(output: Any) -> list[Tensor]:
    """The outputs of a model, which may be one tensor or several."""
    return [output] if isinstance(output, Tensor) else list(output)


def relative_difference(expected: Tensor, output: NDArray[Any]) -> float:
    """Largest difference of a value, as a share of the standard deviation of the expected values.

    Few classes can lie closer together than float32 tells apart: a tenth of the largest value counts as well.

    Args:
        expected: What PyTorch computed.
        output: What the runtime computed.

    Returns:
        The share; nan if a value is.

    Raises:
        RuntimeError: If the shapes differ.

    Example:
        >>> relative_difference(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.5]).numpy())
        0.5
    """
    if tuple(output.shape) != tuple(expected.shape):
        raise RuntimeError(f"the file gives an output of {list(output.shape)}, PyTorch one of {list(expected.shape)}")
    expected = expected.double()  # some outputs are whole numbers
    spread = max(float(expected.std(correction=0)), 0.1 * float(expected.abs().max()))
    difference = float((torch.from_numpy(output).double() - expected).abs().max())
    return difference / spread if difference else 0.0

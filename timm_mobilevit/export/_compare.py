"""How far the outputs of a file are from those of the model that it was written from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TOLERANCE = 1e-4  # of the standard deviation of an output, in float32
# Or so many times what PyTorch's own float32 is off from float64, where that is more: an SSDLite whose weights and
# statistics are all random is off by 2e-3 in PyTorch, and runtimes differ from it by up to 3.4 times as much as that.
ROUNDINGS = 10
HALF_TOLERANCE = 0.1  # with weights in float16: rounding them alone moves random networks by up to 0.03 in PyTorch


def make_images(shape: Sequence[int], *, pictures: bool = False) -> Tensor:
    """Make random images, or pictures in uint8, that are the same for the same shape."""
    generator = torch.Generator().manual_seed(0)
    if pictures:
        return torch.randint(256, tuple(shape), dtype=torch.uint8, generator=generator)
    return torch.rand(*shape, generator=generator)


def as_list(output: Any) -> list[Tensor]:
    """Return the outputs of a model, which may be one tensor or several, as a list."""
    return [output] if isinstance(output, Tensor) else list(output)


def output_names(model: nn.Module, count: int) -> list[str]:
    """Name the outputs of a model, of which there are ``count``, in an exported file."""
    names = getattr(model, "output_names", None)
    if names is not None:
        return list(names)
    if hasattr(model, "feature_info") and not hasattr(model, "num_classes"):  # timm's wrappers for features_only
        return [f"feature_{i}" for i in range(count)]
    return ["logits" if getattr(model, "num_classes", 1) else "features"]


def relative_difference(expected: Tensor, output: NDArray[Any]) -> float:
    """Return the largest difference, as a share of the standard deviation of the expected values.

    It is nan if a value is. Few classes can lie closer together than float32 tells apart: a tenth of the largest value
    counts as well.

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


def check_outputs(
    expected: Sequence[Tensor],
    outputs: Sequence[NDArray[Any]],
    names: Sequence[str],
    tolerance: float,
    rounding: Callable[[], Sequence[float]],
) -> float:
    """Make sure that a file computes what PyTorch does, and say by how much it differs at most.

    ``rounding`` measures how far each expected output is from its value in float64. It is called only if an output is
    further off than the tolerance.

    Raises:
        RuntimeError: If an output is further off than the tolerance and rounding explain, has another shape or is
            missing.
    """
    if not len(expected) == len(outputs) == len(names):
        raise RuntimeError(f"the file gives {len(outputs)} outputs, PyTorch {len(expected)}")
    differences = [relative_difference(*pair) for pair in zip(expected, outputs, strict=True)]
    if all(difference <= tolerance for difference in differences):  # nan is a failure too
        return max(differences)
    for name, difference, own in zip(names, differences, rounding(), strict=True):
        limit = max(tolerance, ROUNDINGS * own)
        if not difference <= limit:
            raise RuntimeError(
                f"the file's output {name} differs from PyTorch's by {difference:.2g} of its standard deviation, more "
                f"than {limit:.2g}"
            )
    return max(differences)

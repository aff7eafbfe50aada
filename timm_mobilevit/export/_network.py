"""A model ready for export: the network that is written, the one that the file is compared with, and metadata."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.optimize import optimize_for_inference
from ._calibration import QuantizationLoss, check_correlation, draw_images, few
from ._compare import TOLERANCE, as_list, check_outputs, make_images, output_names, relative_difference
from ._interface import WithInterface
from ._metadata import find_mean_and_std, find_metadata


@dataclass
class Network:
    """A model ready for export.

    Attributes:
        optimized: The network that is written.
        reference: The network that the file is compared with.
        names: Of its outputs.
        metadata: About the model, for applications.
        shapes: Of the batches of images that the file is compared on.
        axes: Names of the axes of the images that may have any size.
        tolerance: How far an output may be off, as a share of its standard deviation.
        calibration: Images that eight bits were calibrated on, if they were.
    """

    optimized: Any
    reference: nn.Module
    names: list[str]
    metadata: dict[str, Any]
    shapes: list[tuple[int, ...]]
    axes: dict[int, str] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    calibration: list[Tensor] = field(default_factory=list)

    @property
    def takes_pictures(self) -> bool:
        """Tell whether images are uint8 [B, H, W, C]."""
        return bool(self.metadata.get("image_input"))

    def images(self, shape: Sequence[int] = ()) -> Tensor:
        """Make random images, the same for the same shape."""
        return make_images(shape or self.shapes[0], pictures=self.takes_pictures)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs in PyTorch."""
        with torch.inference_mode():
            return as_list(self.reference(images))

    def calibrate(self, folder: Path) -> list[Tensor]:
        """Read images of a folder, for the ranges of activations and for the comparison."""
        self.calibration = draw_images(self.metadata, folder)
        return self.calibration

    def compare(self, run: Callable[[Any], list[Any]]) -> float | QuantizationLoss:
        """Make sure that a file, as a function of images, computes what the model does."""
        if self.calibration:
            images = few(self.calibration)
            return check_correlation([self.outputs(x) for x in images], [run(x.numpy()) for x in images])
        largest = 0.0
        hint = "; export with dynamic_size=False, or at a larger input_size" if self.axes else ""
        for shape in self.shapes:
            batch = self.images(shape)
            try:
                outputs = run(batch.numpy())
            except Exception as error:  # the runtime's own
                raise RuntimeError(f"the exported file does not run on {list(shape)} ({error}){hint}") from error
            expected = self.outputs(batch)
            rounding = partial(self._rounding, batch, expected)
            try:
                largest = max(largest, check_outputs(expected, outputs, self.names, self.tolerance, rounding))
            except RuntimeError as error:
                raise RuntimeError(f"on {list(shape)} {error}{hint}") from error
        return largest

    def _rounding(self, images: Tensor, expected: Sequence[Tensor]) -> list[float]:
        """Measure how far outputs are from those in float64, as shares of their standard deviations."""
        exact = copy.deepcopy(self.reference).double()
        try:
            with torch.inference_mode():
                outputs = as_list(exact(images if self.takes_pictures else images.double()))
        except RuntimeError:  # a network of the user's that makes tensors in float32
            return [0.0] * len(expected)
        return [relative_difference(*pair) for pair in zip(outputs, (x.numpy() for x in expected), strict=True)]

    def trace(
        self,
        *,
        rewrite: Callable[[Any], Any] | None = None,
        decompositions: Mapping[Any, Callable[..., Any]] | None = None,
        network: nn.Module | None = None,
        images: Tensor | None = None,
    ) -> torch.export.ExportedProgram:
        """Trace the network, or another one, on one image; ``rewrite`` is applied before ``decompositions``."""
        args = (self.images() if images is None else images,)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)  # torch.export, about torch's own code
            program = torch.export.export(network or self.optimized, args)
            if rewrite is not None:
                program = torch.export.export(rewrite(program.module()), args)
            decomposed: torch.export.ExportedProgram = program.run_decompositions(dict(decompositions or {}))
        return decomposed


def prepare(
    model: nn.Module,
    input_size: tuple[int, int, int],
    labels: Sequence[str] | None = None,
    *,
    softmax: bool = False,
    image_input: bool = False,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
) -> Network:
    """Make a model ready for export, as ``export_model`` says; it stays as it is.

    Raises:
        ValueError: If the size is none or the model refuses it, the number of labels is not that of the classes, the
            model has no logits for ``softmax``, or does not say its mean and standard deviation for ``image_input``.
    """
    if len(input_size) != 3 or any(not isinstance(n, int) or n < 1 for n in input_size):
        raise ValueError(f"input_size must be channels, height and width, such as (3, 256, 256); got {input_size!r}")
    channels, height, width = input_size
    shapes: list[tuple[int, ...]] = [(2 if dynamic_batch else 1, *input_size)]  # torch.export: 1 would be a constant
    if dynamic_batch or dynamic_size:
        # No multiple of any stride or patch, and no square: maps have to be resized.
        size = (height + 37, width + 5) if dynamic_size else (height, width)
        shapes.append((3 if dynamic_batch else 1, channels, *size))

    reference: nn.Module = copy.deepcopy(model).cpu().float().eval()
    names = output_names(model, _try_out(reference, shapes))
    metadata = find_metadata(model, input_size, labels)
    # Static strides in the default layout: channels-last, which is faster in PyTorch, adds transpositions elsewhere.
    optimized: Any = optimize_for_inference(reference)
    optimized.to(memory_format=torch.contiguous_format)
    if softmax and names != ["logits"]:
        raise ValueError(f"softmax is for logits, but {type(model).__name__} gives {', '.join(names)}")
    axes = {0: "batch"} if dynamic_batch else {}
    if dynamic_size:
        axes |= {1: "height", 2: "width"} if image_input else {2: "height", 3: "width"}
    interface: dict[str, Any] = {"softmax": softmax}
    if image_input:
        interface |= {**find_mean_and_std(metadata, "image_input"), "image_input": True}
        metadata |= {"mean": [0.0] * channels, "std": [1.0] * channels, "image_input": True}  # nothing is left to do
        shapes = [(batch, height, width, channels) for batch, _, height, width in shapes]
    if softmax or image_input:
        reference, optimized = (WithInterface(network, **interface).eval() for network in (reference, optimized))
    names = ["probabilities"] if softmax else names
    return Network(optimized, reference, names, metadata | {"outputs": names}, shapes, axes)


@torch.inference_mode()
def _try_out(model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> int:
    """Run the model on images of all shapes, and count its outputs."""
    first, *others = shapes
    count = len(as_list(model(make_images(first))))  # the model says best what is wrong with input_size
    for shape in others:
        try:
            model(make_images(shape))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{type(model).__name__} does not take images of {list(shape)}: export it with dynamic_size=False "
                f"and, should that not do, dynamic_batch=False ({error})"
            ) from error
    return count

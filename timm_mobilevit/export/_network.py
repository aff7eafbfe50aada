"""A model made ready for export: the network that is written, the one that the file is compared with, what is known."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.optimize import optimize_for_inference
from ._calibration import QuantizationLoss, check_correlation, draw_images, some
from ._compare import as_list, check_outputs, make_images, make_pixels, output_names
from ._facts import find_facts
from ._interface import WithInterface


@dataclass
class Network:
    """A model made ready for export.

    Attributes:
        optimized: The network that is written.
        reference: The network that the file is compared with.
        names: Of its outputs.
        facts: What an application needs to know.
        shapes: Of the batches of images that the file is compared on.
        axes: Names of the axes of the images that may have any size.
        tolerance: How far an output may be off, as a share of its standard deviation; None to compare nothing.
        calibration: Images that eight bits were calibrated on, if they were.
    """

    optimized: Any
    reference: nn.Module
    names: list[str]
    facts: dict[str, Any]
    shapes: list[tuple[int, ...]]
    axes: dict[int, str] = field(default_factory=dict)
    tolerance: float | None = None
    calibration: list[Tensor] = field(default_factory=list)

    @property
    def takes_pictures(self) -> bool:
        """Whether images are uint8 [B, H, W, C]."""
        return bool(self.facts.get("image_input"))

    @property
    def depth(self) -> int:
        """How many modules stand around those of the model, the model among them."""
        return 1 + isinstance(self.optimized, WithInterface)

    def images(self, shape: Sequence[int] = ()) -> Tensor:
        """Random images, the same for the same shape."""
        return (make_pixels if self.takes_pictures else make_images)(shape or self.shapes[0])

    def outputs(self, images: Tensor) -> list[Tensor]:
        """What PyTorch computes."""
        with torch.inference_mode():
            return as_list(self.reference(images))

    def calibrate(self, folder: Path) -> list[Tensor]:
        """Take the images of a folder, as the file takes them, for ranges of activations and for the comparison."""
        pictures = self.takes_pictures
        self.calibration = [as_input(image, pictures=pictures) for image in draw_images(self.facts, folder)]
        return self.calibration

    def compare(self, run: Callable[[Any], list[Any]]) -> float | QuantizationLoss | None:
        """Make sure that a file, as a function of images, computes what the model does."""
        if self.calibration:
            compared = some(self.calibration)
            return check_correlation([self.outputs(x) for x in compared], [run(x.numpy()) for x in compared])
        if self.tolerance is None:
            return None
        largest = 0.0
        hint = "; export with dynamic_size=False, or at a larger input_size" if self.axes else ""
        for shape in self.shapes:
            images = self.images(shape)
            try:
                outputs = run(images.numpy())
            except Exception as error:  # the runtime's own
                raise RuntimeError(f"the exported file does not run on {list(shape)} ({error}){hint}") from error
            try:
                largest = max(largest, check_outputs(self.outputs(images), outputs, self.names, self.tolerance))
            except RuntimeError as error:
                raise RuntimeError(f"on {list(shape)} {error}{hint}") from error
        return largest

    def halve(self) -> None:
        """Compute in float16 between the input and the output, which stay float32."""
        interface = isinstance(self.optimized, WithInterface)
        half = _Half((self.optimized.model if interface else self.optimized).half())
        if interface:
            self.optimized.model = half
        else:
            self.optimized = half.eval()

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


class _Half(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        found = self.model(x.half())
        return found.float() if isinstance(found, Tensor) else [output.float() for output in found]


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

    Example:
        >>> import timm
        >>> network = prepare(timm.create_model("mobilevitv3_xxs", num_classes=10), (3, 64, 64))
        >>> network.names, network.trace().module()(torch.rand(1, 3, 64, 64)).shape
        (['logits'], torch.Size([1, 10]))
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
    facts = find_facts(model, input_size, labels)
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
        if missing := [key for key in ("mean", "std") if key not in facts]:
            raise ValueError(
                f"image_input needs the {' and '.join(missing)} of the images, which {type(model).__name__} does not "
                "know; set them in its pretrained_cfg"
            )
        interface |= {"mean": facts["mean"], "std": facts["std"], "image_input": True}
        facts |= {"mean": [0.0] * channels, "std": [1.0] * channels, "image_input": True}  # nothing is left to do
        shapes = [(batch, height, width, channels) for batch, _, height, width in shapes]
    if softmax or image_input:
        reference, optimized = (WithInterface(network, **interface).eval() for network in (reference, optimized))
    names = ["probabilities"] if softmax else names
    return Network(optimized, reference, names, facts | {"outputs": names}, shapes, axes)


def as_input(images: Tensor, *, pictures: bool) -> Tensor:
    """Images [B, C, H, W] as a file takes them: uint8 [B, H, W, C], of values in [0, 1], if it takes pictures."""
    return (255 * images).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous() if pictures else images


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

"""ONNX: one self-contained file in the standard operators, compared with PyTorch before it is put in place."""

import copy
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import replacing
from .._version import __version__
from ..formats import require
from ..inference.optimize import optimize_for_inference
from ._compare import HALF_TOLERANCE, TOLERANCE, as_list, check_outputs, make_images, make_pixels, output_names
from ._facts import find_facts
from ._half import to_half
from ._interface import WithInterface
from ._opset17 import to_opset_17
from ._program import check_input_size
from ._target import check_target

OLDEST_OPSET = 17
_EXPORTER_OPSET = 18  # what torch's exporter writes; it only converts to newer ones
_IR_VERSION = 8
_SMALLEST_TRACED = 128  # pixels: two patches a side in the last map of every model of this package


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    dynamic_batch: bool = True,
    dynamic_size: bool = True,
    opset: int = _EXPORTER_OPSET,
    half: bool = False,
    half_io: bool = False,
    softmax: bool = False,
    image_input: bool = False,
    input_name: str = "images",
    labels: Sequence[str] | None = None,
    check: bool = True,
) -> float | None:
    """Write a model as ONNX, for inference.

    The model is optimised first (batch norms folded into convolutions) and is itself left as it is. The file has the
    input ``images`` [batch, channels, height, width], and as outputs ``logits`` (``features`` without a classifier),
    ``feature_0``, ``feature_1``, … for a model that returns a list of maps, or what the model's ``output_names`` say.
    Its metadata hold what ``pretrained_cfg`` says of the architecture and the preprocessing, and the class names if
    they are known, each as JSON.

    A file for any image size has more nodes, which compute sizes. Where the size is known, fix it.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: File to write, whose name ends in ``.onnx``; an existing one is replaced.
        input_size: Channels, height and width of the images that the export runs on.
        dynamic_batch: Whether the file takes any number of images; otherwise one.
        dynamic_size: Whether the file takes images of any size; otherwise ``input_size``.
        opset: Version of the standard operators, 17 or newer.
        half: Whether weights and arithmetic are float16, for runtimes that take the precision from the file. Norms,
            softmax and what follows the last convolution or linear layer stay float32.
        half_io: Whether inputs and outputs that are float32 otherwise are float16 too.
        softmax: Whether the output is ``probabilities`` [batch, classes, …] instead of ``logits``.
        image_input: Whether ``images`` are uint8 [batch, height, width, channels], as pictures are decoded: scaling,
            mean and standard deviation are then in the file, and its metadata say 0 and 1. Otherwise they are float32
            [batch, channels, height, width], in [0, 1] before mean and standard deviation.
        input_name: What the file calls its input; other libraries look for names of their own, such as "pixel_values".
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        check: Whether to validate the file, and to compare it with PyTorch in ONNX Runtime at ``input_size`` and, where
            something is dynamic, at another batch and size: within 1e-4 of the standard deviation of each output, with
            ``half`` within 0.1.

    Returns:
        The largest difference from PyTorch, as a share of the standard deviation; None without ``check``.

    Raises:
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If the path has another ending or is a folder, an argument has a value that it does not take, the
            model has no logits for ``softmax`` or does not say its mean and standard deviation for ``image_input``, or
            it cannot be exported for any size.
        RuntimeError: If the file does not compute what the model computes. It is not kept.

    Example:
        >>> import tempfile, onnxruntime, timm
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     difference = export_onnx(model, f"{folder}/model.onnx", input_size=(3, 64, 64), dynamic_size=False)
        ...     session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        >>> session.run(["logits"], {"images": torch.rand(3, 3, 64, 64).numpy()})[0].shape
        (3, 10)
    """
    require("onnx")
    check_target(Path(path), "onnx")
    check_input_size(input_size)
    if opset < OLDEST_OPSET:
        raise ValueError(f"opset must be {OLDEST_OPSET} or newer, got {opset}")
    if half_io and not half:
        raise ValueError("half_io is for half=True: only a file in half precision has float16 inputs and outputs")

    channels, height, width = input_size
    shapes = [(2 if dynamic_batch else 1, *input_size)]  # not 1: torch.export takes a size of 1 for a constant
    if dynamic_batch or dynamic_size:
        # No multiple of any stride or patch, and no square: maps have to be resized.
        size = (height + 37, width + 5) if dynamic_size else (height, width)
        shapes.append((3 if dynamic_batch else 1, channels, *size))

    reference: nn.Module = copy.deepcopy(model).cpu().float().eval()
    names = output_names(model, _try_out(reference, shapes))
    facts = find_facts(model, input_size, labels)
    optimized = optimize_for_inference(reference)
    if softmax or image_input:
        interface = _interface(model, names, facts, softmax=softmax, image_input=image_input)
        reference, optimized = (WithInterface(network, **interface).eval() for network in (reference, optimized))
    if softmax:
        names = ["probabilities"]
    axes = {0: "batch"} if dynamic_batch else {}
    if dynamic_size:
        axes |= {1: "height", 2: "width"} if image_input else {2: "height", 3: "width"}
    traced: tuple[int, ...] = shapes[0]
    if dynamic_size:  # torch.export takes a size of 1 for a constant: no map may have a single pixel or patch
        traced = (*traced[:2], *(max(side, _SMALLEST_TRACED) for side in traced[2:]))
    if image_input:
        shapes = [(batch, height, width, channels) for batch, _, height, width in shapes]
        traced = (traced[0], *traced[2:], channels)
        facts |= {"mean": [0.0] * channels, "std": [1.0] * channels}  # nothing is left to do
    images = (make_pixels if image_input else make_images)(traced)

    proto = _translate(optimized, images, input_name, names, axes, max(opset, _EXPORTER_OPSET)).model_proto
    if opset < _EXPORTER_OPSET:
        to_opset_17(proto)
    if half:
        proto = to_half(proto, half_io=half_io)
    with replacing(Path(path)) as temporary:
        _save(proto, temporary, facts)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        return check_onnx(temporary, reference, shapes, tolerance=tolerance) if check else None


def check_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Validate a file, and compare it with the model that it was written from in ONNX Runtime on the CPU.

    Args:
        path: The file.
        model: The model, in float32 and evaluation mode on the CPU. Where the file takes uint8, it takes that too.
        shapes: Shapes of the batches of random images to compare on.
        tolerance: How far an output may be from the model's, as a share of its standard deviation.

    Returns:
        The largest difference, as a share of the standard deviation of the output.

    Raises:
        ImportError: If the extra ``onnx`` is not installed.
        RuntimeError: If the file is not valid, needs operators outside the standard, does not run, or an output is
            further from the model's than ``tolerance``.
    """
    require("onnx")
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except Exception as error:  # the checker and shape inference have classes of their own
        raise RuntimeError(f"the exported file is not valid ONNX: {error}") from error
    graph = onnx.load(path)
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in graph.graph.node if node.domain})
    if foreign or graph.functions:
        raise RuntimeError(f"the exported file needs operators that are not ONNX's own: {', '.join(foreign)}")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (source,) = session.get_inputs()
    largest = 0.0
    for shape in shapes:
        images = make_pixels(shape) if source.type == "tensor(uint8)" else make_images(shape)
        feed = images.half() if source.type == "tensor(float16)" else images
        with torch.inference_mode():
            expected = as_list(model(images))
        try:
            outputs = session.run(None, {source.name: feed.numpy()})
        except Exception as error:  # ONNX Runtime's own
            raise RuntimeError(
                f"the exported file does not run on {list(shape)}; if a map has a single pixel at input_size, that has "
                f"become a constant: export at a larger one, or with dynamic_size=False ({error})"
            ) from error
        try:
            largest = max(largest, check_outputs(expected, outputs, names, tolerance))
        except RuntimeError as error:
            raise RuntimeError(
                f"on {list(shape)} {error}; if it does so at other sizes than input_size only, export with "
                "dynamic_size=False"
            ) from error
    return largest


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


def _interface(
    model: nn.Module, names: list[str], facts: dict[str, Any], *, softmax: bool, image_input: bool
) -> dict[str, Any]:
    """The options of ``WithInterface`` for a model."""
    if softmax and names != ["logits"]:
        raise ValueError(f"softmax is for logits, but {type(model).__name__} gives {', '.join(names)}")
    if not image_input:
        return {"softmax": softmax}
    missing = [key for key in ("mean", "std") if key not in facts]
    if missing:
        raise ValueError(
            f"image_input needs the {' and '.join(missing)} of the images, which {type(model).__name__} does not know; "
            "set them in its pretrained_cfg"
        )
    return {"mean": facts["mean"], "std": facts["std"], "softmax": softmax, "image_input": True}


def _translate(model: Any, images: Tensor, input_name: str, names: list[str], axes: dict[int, str], opset: int) -> Any:
    # Static strides in the default layout: the channels-last one, which is faster in PyTorch, adds transpositions here.
    model = model.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)  # torch's exporter, about torch's own code
        try:
            # The exporter that goes through torch.export: the older one writes each computation with a size as a chain
            # of nodes.
            return torch.onnx.export(
                model,
                (images,),
                input_names=[input_name],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=(axes,) if axes else None,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            if not axes:
                raise
            raise ValueError(
                f"{type(model).__name__} cannot be exported for any {' and '.join(axes.values())}: export it with "
                f"dynamic_size=False and, should that not do, dynamic_batch=False ({error.__cause__ or error})"
            ) from error


def _save(proto: Any, path: Path, facts: dict[str, Any]) -> None:
    """Write a file that says where it comes from, and nothing about the machine that it was made on."""
    import onnx

    proto.producer_name, proto.producer_version = "timm-mobilevit", __version__
    # Older runtimes and compilers for NPUs refuse newer ones (onnxruntime#20559); nothing in the file needs more.
    proto.ir_version = min(proto.ir_version, _IR_VERSION)
    # torch's exporter writes the stack trace of each node, with the paths of the machine.
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.doc_string = ""
    onnx.helper.set_model_props(proto, {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()})
    onnx.save(proto, os.fspath(path))

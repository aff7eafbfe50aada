"""``timm-mobilevit export``."""

import re
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..formats import FORMATS
from ._options import Entry
from ._targets import reserve_file

if TYPE_CHECKING:
    from torch import nn

    from ..export.quantize import QuantizationLoss

    # Difference from PyTorch as a share of the standard deviation; of a quantised file, how near it is to float32.
    Found = float | QuantizationLoss | None

EXAMPLES = (
    "timm-mobilevit export mobilevitv2_1_0 --out mobilevitv2_1_0.onnx",
    "timm-mobilevit export digits --out digits.onnx --static",
    "timm-mobilevit export mobilevitv3_s --backbone --out-indices 2,3,4 --img-size 320 --out backbone.onnx",
    "timm-mobilevit export digits --format onnx --int8 --calibration scans --out digits_int8.onnx",
    "timm-mobilevit export digits --static --half --opset 17 --image-input --softmax --out digits_half.onnx",
    "timm-mobilevit export mobilevitv2_0_5 --format coreml --out mobilevitv2_0_5.mlpackage",
    "timm-mobilevit export digits --format litert --out digits.tflite",
    "timm-mobilevit export --config ssdlite_mobilevitv2-1.0 --checkpoint ssdlite.pth --out ssdlite.onnx",
)


class WeightType(str, Enum):
    """How a quantised file stores its weights."""

    int7 = "int7"
    int8 = "int8"
    uint8 = "uint8"


def _format_name(name: str) -> str:
    if name not in FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(FORMATS)}; got {name!r}")
    return name


def export(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(help=f"What to write: a name that ends in {', '.join(form.ending for form in FORMATS.values())}."),
    ],
    model: Annotated[
        str,
        typer.Argument(
            help="Architecture or architecture.tag, or a directory written by `convert`; not with --config.",
            show_default=False,
        ),
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            "--format",
            parser=_format_name,
            metavar=f"[{'|'.join(FORMATS)}]",
            help="What to write. Each needs the extra of its name.",
        ),
    ] = "onnx",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to use instead of the published ones: a file in any format that `convert` knows."),
    ] = None,
    entry: Entry = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights, the same each time, to try a runtime.")
    ] = False,
    config: Annotated[
        str,
        typer.Option(
            help="Config of a detector or segmentor, instead of a model. A file, or a name that "
            "`timm-mobilevit config` lists. Needs the extra seg, det or mm, and weights in --checkpoint.",
            show_default=False,
        ),
    ] = "",
    backbone: Annotated[bool, typer.Option("--backbone", help="Write feature maps instead of logits.")] = False,
    out_indices: Annotated[
        str, typer.Option(help="Stages of the backbone, from 0 to 4, separated by commas.")
    ] = "0,1,2,3,4",
    img_size: Annotated[
        str,
        typer.Option(
            metavar="SIDE | HEIGHT,WIDTH",
            help="Size of the images in pixels, if not the model's own; of a config, what its test pipeline makes.",
            show_default=False,
        ),
    ] = "",
    static: Annotated[bool, typer.Option("--static", help="ONNX: one image of that size, nothing else.")] = False,
    fixed_size: Annotated[
        bool, typer.Option("--fixed-size", help="ONNX: any number of images, all of that size.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="ONNX and Core ML, detectors: write the boxes and scores of all anchors and leave the suppression to "
            "the application, as in ExecuTorch files.",
        ),
    ] = False,
    argmax: Annotated[
        bool, typer.Option("--argmax", help="ONNX, segmentors: write the class of each pixel instead of logits.")
    ] = False,
    half: Annotated[
        bool,
        typer.Option(
            "--half",
            help="OpenVINO, LiteRT, ncnn, TensorRT: store the weights in float16. ONNX: weights and arithmetic in "
            "float16, norms and softmax in float32.",
        ),
    ] = False,
    half_io: Annotated[
        bool, typer.Option("--half-io", help="ONNX: with --half, float16 for inputs and outputs too.")
    ] = False,
    softmax: Annotated[bool, typer.Option("--softmax", help="ONNX: give probabilities instead of logits.")] = False,
    image_input: Annotated[
        bool,
        typer.Option(
            "--image-input",
            help="ONNX: take pictures as they are decoded, uint8 [batch, height, width, channels], with scaling, mean "
            "and standard deviation in the file.",
        ),
    ] = False,
    opset: Annotated[int, typer.Option(min=17, help="ONNX: version of the operators.")] = 18,
    int8: Annotated[
        bool, typer.Option("--int8", help="ONNX, OpenVINO, ExecuTorch: quantise to 8 bits, with --calibration.")
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of images that the model is for, to measure its ranges on.")
    ] = None,
    weight_type: Annotated[
        WeightType | None,
        typer.Option(
            help="How --int8 stores weights in ONNX: int7 and uint8 are right on every processor, int7 is faster on "
            "x86, uint8 has one bit more; int8 has both, but is wrong on x86 without VNNI.  [default: int7]",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder with one folder of images per class, or with one per split: print the accuracy on them, of "
            "the model and of the file.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class names: a text file with one per line, or JSON."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a model for another runtime.

    A file is run and compared with PyTorch before it is put in place, a quantised one with float32. What cannot be run
    on this machine is reported as not verified.
    """
    if bool(model) == bool(config):
        raise typer.BadParameter("name a model, or a detector or segmentor with --config")
    if entry is not None and not checkpoint:
        raise typer.BadParameter("--entry goes with --checkpoint")
    if checkpoint and random_weights:
        raise typer.BadParameter("--checkpoint and --random-weights exclude each other")
    if config and backbone:
        raise typer.BadParameter("--backbone takes a model, not a --config")
    if int8 != (calibration is not None):
        raise typer.BadParameter("--int8 and --calibration go together: ranges are measured on images")
    if (raw or argmax) and not config:
        raise typer.BadParameter("--raw and --argmax go with --config")
    if argmax and softmax:
        raise typer.BadParameter("--argmax and --softmax exclude each other: both are of the logits")
    if (labels or evaluate) and (config or backbone):
        raise typer.BadParameter("--labels and --evaluate are for classifiers")
    wanted = _parse_size(img_size)
    if evaluate and wanted and wanted[0] != wanted[1]:
        raise typer.BadParameter("--evaluate measures on squares: give --img-size one number")
    if evaluate and FORMATS[to].unverified:
        raise typer.BadParameter(f"--evaluate runs the file, but {FORMATS[to].unverified}")
    if weight_type and not (int8 and to == "onnx"):
        raise typer.BadParameter("--weight-type goes with --int8 and --format onnx")
    if half_io and not half:
        raise typer.BadParameter("--half-io goes with --half")
    if to == "onnx" and int8 and (half or image_input):
        raise typer.BadParameter("--int8 goes neither with --half nor with --image-input")
    given = {
        "--config": config,
        "--backbone": backbone,
        "--static": static,
        "--fixed-size": fixed_size,
        "--raw": raw,
        "--argmax": argmax,
        "--half": half,
        "--half-io": half_io,
        "--softmax": softmax,
        "--image-input": image_input,
        "--opset": opset != 18,
        "--int8": int8,
    }
    if refused := [name for name, value in given.items() if value and name not in FORMATS[to].takes]:
        others = [name for name, form in FORMATS.items() if refused[0] in form.takes]
        raise typer.BadParameter(f"{refused[0]} goes with --format {', '.join(others)}; got {to}")
    from ..export._target import check_target

    reserve_file(context, out, force=force, check=partial(check_target, to=to))
    network: Any = _load_config(config, checkpoint, entry, random_weights, wanted) if config else None
    is_detector = network is not None and network.export_metadata["task"] == "object-detection"
    if (argmax and is_detector) or (raw and not is_detector):
        raise typer.BadParameter("--raw is for detectors, --argmax for segmentors")
    suppress = is_detector and not raw
    if network is None:
        network = _load_model(model, checkpoint, entry, random_weights)
        size = network.pretrained_cfg["input_size"]
        if backbone:
            from timm.models._features import FeatureGetterNet  # timm.models does not pass it on

            cfg = network.pretrained_cfg
            network = FeatureGetterNet(network, out_indices=_indices(out_indices))
            network.pretrained_cfg = cfg
    else:
        size = network.input_size
    size = (size[0], *(wanted or size[1:]))

    options: dict[str, Any] = {"input_size": size, "labels": _read_labels(labels) if labels else None}
    if "--int8" in FORMATS[to].takes:
        options["calibration"] = calibration
    if "--half" in FORMATS[to].takes:
        options["half"] = half
    if to == "onnx":
        options |= {"dynamic_batch": not static, "dynamic_size": not static and not fixed_size, "opset": opset}
        options |= {"half_io": half_io, "softmax": softmax, "image_input": image_input}
        options["weight_type"] = (weight_type or WeightType.int7).value
        options |= {"suppress": suppress, "argmax": argmax}
        if suppress:  # detections are those of one image
            options["dynamic_batch"] = False
    elif to == "coreml":
        options["suppress"] = suppress
    before = _top1(network, evaluate, size) if evaluate else None
    write = _WRITERS.get(to, _write_with_timmx)
    found = write(network, out, to, options)
    if isinstance(found, float):
        typer.echo(f"In {FORMATS[to].title}, it differs from PyTorch by {found:.1e} of the standard deviation.")
    elif found is not None:
        typer.echo(
            f"On {found.num_images} of the calibration images, the correlation of the outputs with float32 is "
            f"{found.correlation:.4f}."
        )
    elif FORMATS[to].unverified:
        typer.echo(f"Not verified: {FORMATS[to].unverified}.")
    if evaluate:
        from ..export import ExportedModel

        after = _top1(ExportedModel(out), evaluate, size)
        typer.echo(f"Top-1 on {evaluate}: {before} % in PyTorch, {after} % in this file.")
    typer.echo(f"Wrote {out}: images of {size[1]}×{size[2]} pixels with {size[0]} channels.")


def _top1(network: "nn.Module", data: Path, size: tuple[int, int, int]) -> str:
    from ..evaluate import evaluate
    from .evaluate import progress_bar

    with progress_bar("Evaluating") as on_batch:
        (accuracy,) = evaluate(network, data, img_size=size[1], workers=0, on_batch=on_batch)
    return f"{accuracy.top1:.2f}"


def _read_labels(path: Path) -> list[str]:
    from ._labels import read_labels

    return read_labels(path)


def _load_model(name: str, checkpoint: Path | None, entry: str | None, random_weights: bool) -> "nn.Module":
    from ._checkpoint import load_model

    directory = Path(name.removeprefix("local-dir:"))
    if directory.is_dir():
        if checkpoint or random_weights:
            raise ValueError(f"{directory} holds weights of its own; to use others, name the architecture")
        return load_model("", directory, True, entry)
    network = load_model(name, checkpoint, not random_weights, entry)
    if checkpoint or random_weights:
        cfg: Any = network.pretrained_cfg
        for key in ("tag", "license", "origin_url"):  # they say nothing about these weights
            cfg.pop(key, None)
    return network


def _load_config(
    config: str, checkpoint: Path | None, entry: str | None, random_weights: bool, size: tuple[int, int] | None
) -> "nn.Module":
    if not checkpoint and not random_weights:
        raise ValueError("a config has no weights: name them with --checkpoint, or say --random-weights")
    from ..export.mm import load_exportable
    from ._checkpoint import load_dense

    return load_dense(partial(load_exportable, img_size=size), config, checkpoint, entry)


def _parse_size(text: str) -> tuple[int, int] | None:
    """Height and width, from ``320``, ``480,640`` or ``480x640``."""
    if not text:
        return None
    sides = re.fullmatch(r"([1-9]\d*)(?:\s*[,x×]\s*([1-9]\d*))?", text.strip(), re.IGNORECASE)
    if not sides:
        raise typer.BadParameter(f"--img-size is a number of pixels, or HEIGHT,WIDTH as in 480,640; got {text!r}")
    return int(sides[1]), int(sides[2] or sides[1])


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--out-indices must be numbers separated by commas, such as 2,3,4; got {text!r}") from error


def _write_onnx(network: "nn.Module", out: Path, to: str, options: dict[str, Any]) -> "Found":
    import tempfile

    from ..export.final_outputs import add_argmax, add_suppression
    from ..export.onnx import export_onnx
    from ..export.quantize import quantize_onnx

    calibration, weight_type, suppress, argmax = (
        options.pop(key) for key in ("calibration", "weight_type", "suppress", "argmax")
    )
    finish = add_suppression if suppress else add_argmax if argmax else None
    if calibration is None and not finish:
        return export_onnx(network, out, **options)
    with tempfile.TemporaryDirectory() as folder:
        network_file, quantized_file = (Path(folder, name) for name in ("float.onnx", "int8.onnx"))
        found: Found = export_onnx(network, network_file, **options)
        if calibration is not None:
            found = quantize_onnx(network_file, quantized_file if finish else out, calibration, weight_type=weight_type)
        if finish:
            finish(quantized_file if calibration is not None else network_file, out)
    return found


def _write_coreml(network: "nn.Module", out: Path, to: str, options: dict[str, Any]) -> "Found":
    from ..export.coreml import export_coreml
    from ._labels import class_names

    if options["labels"] is None and int(getattr(network, "num_classes", 0)):  # type: ignore[arg-type]
        options["labels"] = class_names(network)
    export_coreml(network, out, **options)
    return None


def _write_executorch(network: "nn.Module", out: Path, to: str, options: dict[str, Any]) -> "Found":
    from ..export.executorch import export_executorch

    return export_executorch(network, out, **options)


def _write_with_timmx(network: "nn.Module", out: Path, to: str, options: dict[str, Any]) -> "Found":
    from ..export.with_timmx import export_with_timmx

    return export_with_timmx(network, out, to, **options)


# Formats that are not here are timmx's.
_WRITERS: "dict[str, Callable[[nn.Module, Path, str, dict[str, Any]], Found]]" = {
    "onnx": _write_onnx,
    "coreml": _write_coreml,
    "executorch": _write_executorch,
}

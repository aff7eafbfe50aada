"""``timm-mobilevit export``."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = (
    "timm-mobilevit export mobilevitv2_1_0 --out mobilevitv2_1_0.onnx",
    "timm-mobilevit export digits --out digits.onnx --static",
    "timm-mobilevit export mobilevitv3_s --backbone --out-indices 2,3,4 --img-size 320 --out backbone.onnx",
    "timm-mobilevit export digits --format onnx --int8 --calibration scans --out digits_int8.onnx",
    "timm-mobilevit export mobilevitv2_0_5 --format coreml --out mobilevitv2_0_5.mlpackage",
    "timm-mobilevit export --config ssdlite_mobilevitv2-1.0 --checkpoint ssdlite.pth --out ssdlite.onnx",
)


class Format(str, Enum):
    """Formats there are a writer for."""

    onnx = "onnx"
    coreml = "coreml"
    executorch = "executorch"


class WeightType(str, Enum):
    """How a quantised file stores its weights."""

    int7 = "int7"
    int8 = "int8"
    uint8 = "uint8"


def export(
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .mlpackage or .pte.")],
    model: Annotated[
        str,
        typer.Argument(
            help="Architecture or architecture.tag, or a directory written by `convert`; not with --config.",
            show_default=False,
        ),
    ] = "",
    to: Annotated[Format, typer.Option("--format", help="What to write. Each needs the extra of its name.")] = (
        Format.onnx
    ),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to use instead of the published ones: a file in any format that `convert` knows."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use no weights at all, to try a runtime.")
    ] = False,
    config: Annotated[
        str,
        typer.Option(
            help="Config of a detector or segmentor, instead of a model. A file, or a name that "
            "`timm-mobilevit config` lists. Needs the extra mm, and weights in --checkpoint.",
            show_default=False,
        ),
    ] = "",
    backbone: Annotated[bool, typer.Option("--backbone", help="Write feature maps instead of logits.")] = False,
    out_indices: Annotated[
        str, typer.Option(help="Stages of the backbone, from 0 to 4, separated by commas.")
    ] = "0,1,2,3,4",
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels, if not the model's own.")
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="ONNX: one image of that size, nothing else.")] = False,
    fixed_size: Annotated[
        bool, typer.Option("--fixed-size", help="ONNX: any number of images, all of that size.")
    ] = False,
    opset: Annotated[int, typer.Option(min=18, help="ONNX: version of the operators.")] = 18,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX: quantise to 8 bits; needs --calibration.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of images that the model is for, to measure its ranges on.")
    ] = None,
    weight_type: Annotated[
        WeightType | None,
        typer.Option(
            help="How --int8 stores weights: int7 and uint8 are right on every processor, int7 is faster on x86, uint8 "
            "has one bit more; int8 has both, but is wrong on x86 without VNNI instructions.  [default: int7]",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class names: a text file with one per line, or JSON. For ONNX and Core ML."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a model for another runtime.

    An ONNX file is compared with PyTorch in ONNX Runtime before it is put in place, a quantised one with float32.
    """
    if bool(model) == bool(config):
        raise typer.BadParameter("name a model, or a detector or segmentor with --config")
    if checkpoint and random_weights:
        raise typer.BadParameter("--checkpoint and --random-weights exclude each other")
    if config and backbone:
        raise typer.BadParameter("--backbone takes a model, not a --config")
    if int8 != (calibration is not None):
        raise typer.BadParameter("--int8 and --calibration go together: ranges are measured on images")
    if labels and (config or backbone or to is Format.executorch):
        raise typer.BadParameter("--labels is for classifiers, in ONNX and Core ML")
    if weight_type and not int8:
        raise typer.BadParameter("--weight-type goes with --int8")
    if to is not Format.onnx and (static or fixed_size or int8):
        raise typer.BadParameter("--static, --fixed-size and --int8 are for --format onnx; the others are static")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; choose another name, or overwrite it with --force")

    network: Any = _load_config(config, checkpoint, random_weights) if config else None
    if network is None:
        network = _load_model(model, checkpoint, random_weights)
        size = network.pretrained_cfg["input_size"]
        if backbone:
            from timm.models._features import FeatureGetterNet  # timm.models does not pass it on

            cfg = network.pretrained_cfg
            network = FeatureGetterNet(network, out_indices=_indices(out_indices))
            network.pretrained_cfg = cfg
    else:
        size = network.input_size
    size = (size[0], img_size, img_size) if img_size else tuple(size)

    if to is Format.coreml:
        from ..export.coreml import export_coreml
        from ._labels import class_names

        names = class_names(network, labels) if getattr(network, "num_classes", 0) else None
        export_coreml(network, out, input_size=size, labels=names)
    elif to is Format.executorch:
        from ..export.executorch import export_executorch

        export_executorch(network, out, input_size=size)
    else:
        _write_onnx(
            network,
            out,
            calibration,
            (weight_type or WeightType.int7).value,
            input_size=size,
            dynamic_batch=not static,
            dynamic_size=not static and not fixed_size,
            opset=opset,
            labels=_read_labels(labels) if labels else None,
        )
    typer.echo(f"Wrote {out}: images of {size[1]}×{size[2]} pixels with {size[0]} channels.")


def _read_labels(path: Path) -> list[str]:
    from ._labels import read_labels

    return read_labels(path)


def _load_model(name: str, checkpoint: Path | None, random_weights: bool) -> "nn.Module":
    from ._checkpoint import load_model

    directory = Path(name.removeprefix("local-dir:"))
    if directory.is_dir():
        if checkpoint or random_weights:
            raise ValueError(f"{directory} holds weights of its own; to use others, name the architecture")
        return load_model("", directory, True)
    network = load_model(name, checkpoint, not random_weights)
    if checkpoint or random_weights:
        cfg: Any = network.pretrained_cfg
        for key in ("tag", "license", "origin_url"):  # they say nothing about these weights
            cfg.pop(key, None)
    return network


def _load_config(config: str, checkpoint: Path | None, random_weights: bool) -> "nn.Module":
    if not checkpoint and not random_weights:
        raise ValueError("a config has no weights: name them with --checkpoint, or say --random-weights")
    from ..export.mm import load_exportable

    return load_exportable(config, str(checkpoint) if checkpoint else None)


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--out-indices must be numbers separated by commas, such as 2,3,4; got {text!r}") from error


def _write_onnx(network: "nn.Module", out: Path, calibration: Path | None, weight_type: str, **options: Any) -> None:
    from ..export.onnx import export_onnx

    if calibration is None:
        export_onnx(network, out, **options)
        return
    import tempfile

    from ..export.quantize import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(network, f"{folder}/float.onnx", **options)
        loss = quantize_onnx(f"{folder}/float.onnx", out, calibration, weight_type=weight_type)
    typer.echo(
        f"On {loss.num_images} of the calibration images, the correlation of the outputs with float32 is "
        f"{loss.correlation:.4f}."
    )

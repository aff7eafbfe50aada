"""``timm-mobilevit export``: a subcommand per format, with the options that it takes."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..export._format import Format
from ..export.formats import is_exported
from . import _export_options as shared
from ._options import Config, Entry, Force, Labels, WeightsFile, given_option
from ._targets import reserve_file

if TYPE_CHECKING:
    from torch import nn

    from ..export._calibration import QuantizationLoss

_EXAMPLES = {
    "onnx": (
        "digits --static --out digits.onnx",
        "digits --static --half --opset 17 --image-input --softmax --out digits_half.onnx",
        "digits --static --int8 --calibration scans --out digits_int8.onnx",
        "mobilevitv3_s --backbone --out-indices 2,3,4 --img-size 320 --out backbone.onnx",
        "--config ssdlite_mobilevitv2-1.0 --checkpoint ssdlite.pth --out ssdlite.onnx",
    )
}


def examples(form: Format) -> list[str]:
    """Return examples of the command line."""
    ours = (f"mobilevitv2_1_0 --out mobilevitv2_1_0{form.ending}", *_EXAMPLES.get(form.name, ()))
    return [f"timm-mobilevit export {form.name} {arguments}" for arguments in ours]


def command(form: Format) -> Callable[..., None]:
    """Make the subcommand of a format: what all have, and the options of its own."""

    def export(
        context: typer.Context,
        out: Annotated[Path, typer.Option(help=f"What to write: a name that ends in {form.ending}.")],
        model: shared.Model = "",
        checkpoint: WeightsFile = None,
        entry: Entry = None,
        random_weights: shared.RandomWeights = False,
        config: Config = "",
        backbone: shared.Backbone = False,
        out_indices: shared.OutIndices = "0,1,2,3,4",
        img_size: shared.ImgSize = "",
        labels: Labels = None,
        evaluate: shared.Evaluate = None,
        force: Force = False,
        **own: Any,
    ) -> None:
        refuse(
            {
                "name a model, or a detector or segmentor with --config": bool(model) == bool(config),
                "--backbone takes a model, not a --config": config and backbone,
                "--labels and --evaluate are for classifiers": (labels or evaluate) and (config or backbone),
                f"--evaluate runs the file, but {form.unverified}": evaluate and form.unverified,
                "--out-indices goes with --backbone": given_option(context, ("out_indices",)) and not backbone,
                "--raw and --argmax go with --config": (own.get("raw") or own.get("argmax")) and not config,
            }
        )
        wanted, options = check_options(checkpoint, entry, random_weights, img_size, evaluate, **own)
        reserve_file(context, out, force=force, check=form.check_target)

        if config:
            network: Any = _load_config(config, checkpoint, entry, random_weights, wanted)
            size, task = network.input_size, network.export_metadata["task"]
        else:
            network, task = load_model(model, checkpoint, entry, random_weights), ""
            size = (network.in_chans, *network.pretrained_cfg["input_size"][1:])
            if backbone:
                network = _maps(network, out_indices)
        is_detector = task == "object-detection"
        refuse({"--raw is for detectors, --argmax for segmentors": own.get("argmax" if is_detector else "raw")})
        if "suppress" in form.takes:
            options["suppress"] = is_detector and not own["raw"]
        size = (size[0], *(wanted or size[1:]))

        from ..export.files import export_model
        from ._labels import class_names, read_labels

        names = read_labels(labels) if labels else None
        if form.needs_labels and names is None and int(getattr(network, "num_classes", 0)):
            names = class_names(network)
        before = top1(network, evaluate, size) if evaluate else ""
        found = export_model(network, out, form.name, input_size=size, labels=names, **options)
        typer.echo(difference(found, form.title) if found is not None else f"Not verified: {form.unverified}.")
        if evaluate:
            typer.echo(f"Top-1 on {evaluate}: {before} in PyTorch, {top1(out, evaluate, size)} in {out.name}.")
        typer.echo(f"Wrote {out}: images of {size[1]}×{size[2]} pixels with {size[0]} channels.")

    # typer reads the options from the signature.
    given = {name: annotation for key in form.takes for name, annotation in shared.OWN.get(key, {}).items()}
    signature = inspect.signature(export)
    parameters = list(signature.parameters.values())[:-1]
    for name, annotation in given.items():
        default = form.takes.get(name, False)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    export.__annotations__ |= given
    export.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    checked = "The file is run and compared with PyTorch before it is put in place, a quantized one with float32."
    checked = f"The file is written, but not run: {form.unverified}." if form.unverified else checked
    export.__doc__ = f"Write a model for {form.title}.\n\n{checked}"
    return export


def refuse(cases: dict[str, Any]) -> None:
    """Refuse a call if one of the cases is true; its key says why."""
    for message, applies in cases.items():
        if applies:
            raise typer.BadParameter(message)


def check_options(
    checkpoint: Path | None, entry: str | None, random_weights: bool, img_size: str, evaluate: Path | None, **own: Any
) -> tuple[tuple[int, int] | None, dict[str, Any]]:
    """Refuse options that contradict each other; return height and width, if given, and options of ``export_model``."""
    wanted, int8 = shared.parse_size(img_size), own.pop("int8", False)
    own.pop("raw", None)
    refuse(
        {
            "--entry goes with --checkpoint": entry is not None and not checkpoint,
            "--checkpoint and --random-weights exclude each other": checkpoint and random_weights,
            "--evaluate measures on squares: give --img-size one number": evaluate and wanted and len({*wanted}) > 1,
            "--argmax and --softmax exclude each other: both are of the logits": own.get("argmax") and own["softmax"],
            "--int8 and --calibration go together: ranges are measured on images": int8 != bool(own.get("calibration")),
            "--weight-type goes with --int8": own.get("weight_type", "int7") != "int7" and not int8,
            "--half-io goes with --half": own.get("half_io") and not own["half"],
        }
    )
    if "static" in own:
        static, fixed_size = own.pop("static"), own.pop("fixed_size")
        own |= {"dynamic_batch": not static, "dynamic_size": not static and not fixed_size}
    return wanted, own


def difference(found: "float | QuantizationLoss", title: str) -> str:
    """Say how far the outputs of a file are from the model's."""
    if isinstance(found, float):
        return f"In {title}, it differs from PyTorch by {found:.1e} of the standard deviation."
    return (
        f"On {found.num_images} of the calibration images, the correlation of the outputs in 8 bits with float32 is "
        f"{found.correlation:.4f}."
    )


def top1(network: "nn.Module | Path", data: Path, size: tuple[int, int, int]) -> str:
    """Measure the accuracy of a model or of an exported file, and return it as it is printed."""
    from ..evaluate import evaluate
    from ..export.runtimes import ExportedModel
    from .evaluate import progress_bar

    network = ExportedModel(network) if isinstance(network, Path) else network
    with progress_bar("Evaluating") as on_batch:
        (accuracy,) = evaluate(network, data, img_size=size[1], workers=0, on_batch=on_batch)
    return f"{accuracy.top1:.2f} %"


def load_model(name: str, checkpoint: Path | None, entry: str | None, random_weights: bool) -> "nn.Module":
    """Load the model of a name or directory; its configuration says nothing that is not true of its weights."""
    from . import _checkpoint

    directory = Path(name.removeprefix("local-dir:"))
    if directory.is_dir():
        if checkpoint or random_weights:
            raise ValueError(f"{directory} holds weights of its own; to use others, name the architecture")
        return _checkpoint.load_model("", directory, True, entry)
    if checkpoint and is_exported(checkpoint):
        raise ValueError(f"{checkpoint} is an exported file, which has no weights to read: name what it was made from")
    network = _checkpoint.load_model(name, checkpoint, not random_weights, entry)
    if checkpoint or random_weights:
        _checkpoint.forget_origin(network)
    return network


def _maps(network: Any, out_indices: str) -> Any:
    """Give a network its feature maps as outputs."""
    from timm.models._features import FeatureGetterNet  # timm.models does not pass it on

    try:
        indices = [int(part) for part in out_indices.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--out-indices must be numbers separated by commas, such as 2,3,4; got {out_indices!r}"
        ) from error
    maps = FeatureGetterNet(network, out_indices=indices)
    maps.pretrained_cfg = network.pretrained_cfg
    return maps


def _load_config(
    config: str, checkpoint: Path | None, entry: str | None, random_weights: bool, size: tuple[int, int] | None
) -> "nn.Module":
    if not checkpoint and not random_weights:
        raise ValueError("a config has no weights: name them with --checkpoint, or say --random-weights")
    from ..export.mm import load_exportable
    from ._checkpoint import load_dense

    return load_dense(partial(load_exportable, img_size=size), config, checkpoint, entry)

"""``timm-mobilevit export``: a subcommand per format, with the options that it takes."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..export._format import Format
from . import _export_options as shared
from ._options import Entry
from ._targets import reserve_file

if TYPE_CHECKING:
    from torch import nn

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
    """Of the command line."""
    ours = (f"mobilevitv2_1_0 --out mobilevitv2_1_0{form.ending}", *_EXAMPLES.get(form.name, ()))
    return [f"timm-mobilevit export {form.name} {arguments}" for arguments in ours]


def command(form: Format) -> Callable[..., None]:
    """The subcommand of a format: what all have, and the options of its own."""

    def export(
        context: typer.Context,
        out: Annotated[Path, typer.Option(help=f"What to write: a name that ends in {form.ending}.")],
        model: shared.Model = "",
        checkpoint: shared.Checkpoint = None,
        entry: Entry = None,
        random_weights: shared.RandomWeights = False,
        config: shared.Config = "",
        backbone: shared.Backbone = False,
        out_indices: shared.OutIndices = "0,1,2,3,4",
        img_size: shared.ImgSize = "",
        labels: shared.Labels = None,
        evaluate: shared.Evaluate = None,
        force: shared.Force = False,
        **own: Any,
    ) -> None:
        if bool(model) == bool(config):
            raise typer.BadParameter("name a model, or a detector or segmentor with --config")
        check_weights(checkpoint, entry, random_weights)
        if config and backbone:
            raise typer.BadParameter("--backbone takes a model, not a --config")
        if (labels or evaluate) and (config or backbone):
            raise typer.BadParameter("--labels and --evaluate are for classifiers")
        wanted = read_size(img_size, evaluate)
        if evaluate and form.unverified:
            raise typer.BadParameter(f"--evaluate runs the file, but {form.unverified}")
        options = to_options(own, dense=bool(config))
        reserve_file(context, out, force=force, check=form.check_target)

        if config:
            network: Any = _load_config(config, checkpoint, entry, random_weights, wanted)
            size = network.input_size
            is_detector = network.export_metadata["task"] == "object-detection"
            if (options.get("argmax") and is_detector) or (own.get("raw") and not is_detector):
                raise typer.BadParameter("--raw is for detectors, --argmax for segmentors")
        else:
            network = load_model(model, checkpoint, entry, random_weights)
            size, is_detector = network.pretrained_cfg["input_size"], False
            if backbone:
                network = _maps(network, out_indices)
        if "suppress" in form.takes:
            options["suppress"] = is_detector and not own["raw"]
        size = (size[0], *(wanted or size[1:]))

        from ..export.files import export_model
        from ._labels import class_names, read_labels

        names = read_labels(labels) if labels else None
        if form.needs_labels and names is None and int(getattr(network, "num_classes", 0)):
            names = class_names(network)
        before = top1(network, evaluate, size) if evaluate else None
        found = export_model(network, out, form.name, input_size=size, labels=names, **options)
        if found is None:
            typer.echo(f"Not verified: {form.unverified}.")
        elif isinstance(found, float):
            typer.echo(f"In {form.title}, it differs from PyTorch by {found:.1e} of the standard deviation.")
        else:
            typer.echo(
                f"On {found.num_images} of the calibration images, the correlation of the outputs with float32 is "
                f"{found.correlation:.4f}."
            )
        if evaluate:
            from ..export.runtimes import ExportedModel

            after = top1(ExportedModel(out), evaluate, size)
            typer.echo(f"Top-1 on {evaluate}: {before} % in PyTorch, {after} % in this file.")
        typer.echo(f"Wrote {out}: images of {size[1]}×{size[2]} pixels with {size[0]} channels.")

    # typer reads the options from the signature.
    given = {
        name: (annotation, form.takes.get(name, default) if name != "weight_type" else default)
        for option in form.takes
        for name, (annotation, default) in shared.OWN.get(option, {}).items()
    }
    signature = inspect.signature(export)
    export.__annotations__ |= {name: annotation for name, (annotation, _) in given.items()}
    export.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *list(signature.parameters.values())[:-1],
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                for name, (annotation, default) in given.items()
            ),
        ]
    )
    checked = "The file is run and compared with PyTorch before it is put in place, a quantised one with float32."
    checked = f"The file is written, but not run: {form.unverified}." if form.unverified else checked
    export.__doc__ = f"Write a model for {form.title}.\n\n{checked}"
    return export


def check_weights(checkpoint: Path | None, entry: str | None, random_weights: bool) -> None:
    """Refuse options that contradict each other."""
    if entry is not None and not checkpoint:
        raise typer.BadParameter("--entry goes with --checkpoint")
    if checkpoint and random_weights:
        raise typer.BadParameter("--checkpoint and --random-weights exclude each other")


def read_size(img_size: str, evaluate: Path | None) -> tuple[int, int] | None:
    """Height and width, if given."""
    wanted = shared.parse_size(img_size)
    if evaluate and wanted and wanted[0] != wanted[1]:
        raise typer.BadParameter("--evaluate measures on squares: give --img-size one number")
    return wanted


def to_options(own: dict[str, Any], *, dense: bool = False) -> dict[str, Any]:
    """Options of ``export_model``, from those of the command line."""
    own = dict(own)
    if (own.get("raw") or own.get("argmax")) and not dense:
        raise typer.BadParameter("--raw and --argmax go with --config")
    if own.get("argmax") and own["softmax"]:
        raise typer.BadParameter("--argmax and --softmax exclude each other: both are of the logits")
    if own.pop("int8", False) != (own.get("calibration") is not None):
        raise typer.BadParameter("--int8 and --calibration go together: ranges are measured on images")
    if own.get("weight_type") and own["calibration"] is None:
        raise typer.BadParameter("--weight-type goes with --int8")
    if own.get("half_io") and not own["half"]:
        raise typer.BadParameter("--half-io goes with --half")
    own.pop("raw", None)
    if "static" in own:
        static, fixed_size = own.pop("static"), own.pop("fixed_size")
        own |= {"dynamic_batch": not static, "dynamic_size": not static and not fixed_size}
    if "weight_type" in own:
        own["weight_type"] = (own["weight_type"] or shared.WeightType.int7).value
    return own


def top1(network: "nn.Module", data: Path, size: tuple[int, int, int]) -> str:
    """Accuracy in percent, as it is printed."""
    from ..evaluate import evaluate
    from .evaluate import progress_bar

    with progress_bar("Evaluating") as on_batch:
        (accuracy,) = evaluate(network, data, img_size=size[1], workers=0, on_batch=on_batch)
    return f"{accuracy.top1:.2f}"


def load_model(name: str, checkpoint: Path | None, entry: str | None, random_weights: bool) -> "nn.Module":
    """The model of a name or directory, whose configuration says nothing that is not true of its weights."""
    from . import _checkpoint

    directory = Path(name.removeprefix("local-dir:"))
    if directory.is_dir():
        if checkpoint or random_weights:
            raise ValueError(f"{directory} holds weights of its own; to use others, name the architecture")
        return _checkpoint.load_model("", directory, True, entry)
    network = _checkpoint.load_model(name, checkpoint, not random_weights, entry)
    if checkpoint or random_weights:
        cfg: Any = network.pretrained_cfg
        for key in ("tag", "license", "origin_url"):  # they say nothing about these weights
            cfg.pop(key, None)
    return network


def _maps(network: Any, out_indices: str) -> Any:
    """The network with its feature maps as outputs."""
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

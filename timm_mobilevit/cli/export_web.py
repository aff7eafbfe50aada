"""``timm-mobilevit export web``: a folder of static files instead of a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _export_options as shared
from ._options import Entry, Force, Labels, WeightsFile
from ._targets import reserve_folder
from .export import check_options, difference, load_model, top1

EXAMPLES = (
    "timm-mobilevit export web digits --out site",
    "timm-mobilevit export web digits --int8 --calibration scans --out site",
    "timm-mobilevit export web digits --runtime node_modules/onnxruntime-web/dist --out site",
)


def export_web(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder to write; any server of static files gives it out.")],
    model: Annotated[
        str,
        typer.Argument(
            help="Architecture or architecture.tag, or a directory written by `convert`.", show_default=False
        ),
    ],
    checkpoint: WeightsFile = None,
    entry: Entry = None,
    random_weights: shared.RandomWeights = False,
    img_size: shared.ImgSize = "",
    labels: Labels = None,
    int8: shared.Int8 = False,
    calibration: shared.Calibration = None,
    weight_type: shared.StoredAs = "int7",
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="The folder dist of the npm package onnxruntime-web, to be copied. Otherwise the page loads the "
            "runtime from cdn.jsdelivr.net."
        ),
    ] = None,
    evaluate: shared.Evaluate = None,
    force: Force = False,
) -> None:
    """Write a page that classifies pictures in a browser.

    The folder is what transformers.js reads, too. The model in it is run and compared with PyTorch before it is put in
    place, a quantized one with float32.
    """
    own = {"int8": int8, "calibration": calibration, "weight_type": weight_type}
    wanted, options = check_options(checkpoint, entry, random_weights, img_size, evaluate, **own)
    reserve_folder(context, out, (), force=force)

    from ..export.web import export_web
    from ._labels import read_labels

    network: Any = load_model(model, checkpoint, entry, random_weights)
    input_size = (network.in_chans, *(wanted or network.pretrained_cfg["input_size"][1:]))
    before = top1(network, evaluate, input_size) if evaluate else ""
    names = read_labels(labels) if labels else None
    found, loss = export_web(network, out, input_size=input_size, labels=names, runtime=runtime, **options)
    typer.echo(difference(found, "ONNX Runtime"))
    if loss:
        typer.echo(difference(loss, "ONNX Runtime"))
    if evaluate:
        file = out / "onnx" / ("model_quantized.onnx" if loss else "model.onnx")
        typer.echo(f"Top-1 on {evaluate}: {before} in PyTorch, {top1(file, evaluate, input_size)} in {file.name}.")
    typer.echo(f"Wrote {out}. To look at it: python -m http.server --directory {out}")

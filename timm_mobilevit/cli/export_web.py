"""``timm-mobilevit export web``: a folder of static files instead of a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _export_options as shared
from ._options import Entry
from ._targets import reserve_folder
from .export import check_weights, load_model, read_size, to_options, top1

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
    checkpoint: shared.Checkpoint = None,
    entry: Entry = None,
    random_weights: shared.RandomWeights = False,
    img_size: shared.ImgSize = "",
    labels: shared.Labels = None,
    int8: shared.Int8 = False,
    calibration: shared.Calibration = None,
    weight_type: shared.StoredAs = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="The folder dist of the npm package onnxruntime-web, to be copied. Otherwise the page loads the "
            "runtime from cdn.jsdelivr.net."
        ),
    ] = None,
    evaluate: shared.Evaluate = None,
    force: shared.Force = False,
) -> None:
    """Write a page that classifies pictures in a browser.

    The folder is what transformers.js reads, too. The model in it is run and compared with PyTorch before it is put in
    place, a quantised one with float32.
    """
    check_weights(checkpoint, entry, random_weights)
    own = to_options({"int8": int8, "calibration": calibration, "weight_type": weight_type})
    wanted = read_size(img_size, evaluate)
    reserve_folder(context, out, (), force=force)

    from ..export.runtimes import ExportedModel
    from ..export.web import export_web
    from ._labels import read_labels

    network: Any = load_model(model, checkpoint, entry, random_weights)
    channels, *sides = network.pretrained_cfg["input_size"]
    input_size = (channels, *(wanted or sides))
    before = top1(network, evaluate, input_size) if evaluate else None
    difference, loss = export_web(
        network, out, input_size=input_size, labels=read_labels(labels) if labels else None, runtime=runtime, **own
    )
    typer.echo(f"In ONNX Runtime, it differs from PyTorch by {difference:.1e} of the standard deviation.")
    if loss:
        typer.echo(
            f"On {loss.num_images} of the calibration images, the correlation of the outputs in 8 bits with float32 is "
            f"{loss.correlation:.4f}."
        )
    if evaluate:
        file = out / "onnx" / ("model_quantized.onnx" if loss else "model.onnx")
        after = top1(ExportedModel(file), evaluate, input_size)
        typer.echo(f"Top-1 on {evaluate}: {before} % in PyTorch, {after} % in {file.name}.")
    typer.echo(f"Wrote {out}. To look at it: python -m http.server --directory {out}")

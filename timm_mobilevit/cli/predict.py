"""``timm-mobilevit predict``."""

import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .._files import replacing
from ._errors import print_error
from ._options import (
    BatchSize,
    Checkpoint,
    CropPct,
    Device,
    Dtype,
    Entry,
    Images,
    ImgSize,
    Json,
    Model,
    Precision,
    check_model_is_named,
)
from ._targets import reserve_folder

if TYPE_CHECKING:
    from ._images import Prediction

T = TypeVar("T")

EXAMPLES = (
    "timm-mobilevit predict cat.jpg --model mobilevitv2_1_0",
    "timm-mobilevit predict photos --model mobilevitv2_2_0.cvnets_in22k_ft_in1k_384 --device cuda --json",
    "timm-mobilevit predict scans --checkpoint digits",
    "timm-mobilevit predict scan.png --model mobilevitv3_xxs --checkpoint output/train/model_best.pth.tar "
    "--img-size 64 --labels classes.txt",
    "timm-mobilevit predict photos --config ssdlite_mobilevitv3-xxs --checkpoint ssdlite.pth --out found",
)

# Options that do not apply to detectors and segmentors, whose config has them.
_OF_CLASSIFIERS = ("model", "pretrained", "topk", "labels", "img_size", "crop_pct", "batch_size", "dtype")


def predict(
    context: typer.Context,
    images: Images,
    model: Model = "",
    checkpoint: Checkpoint = None,
    entry: Entry = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            help="Use the published weights, downloaded once; without them and without --checkpoint, "
            "the weights are random, the same each time."
        ),
    ] = True,
    topk: Annotated[int, typer.Option(min=1, help="How many classes to tell.")] = 5,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names: a text file with one per line, or JSON. Otherwise those that the checkpoint "
            "directory records, or ImageNet's."
        ),
    ] = None,
    img_size: ImgSize = None,
    crop_pct: CropPct = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
    config: Annotated[
        str,
        typer.Option(
            help="Config of a detector or segmentor, instead of --model: draws boxes or masks. A file, or a name that "
            "`timm-mobilevit config` lists. Needs the extra seg, det or mm, --checkpoint and --out.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="With --config: folder to write pictures and predictions.json to.", show_default=False),
    ] = None,
    min_score: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --config: smallest score of a detection.")
    ] = 0.3,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Classify images with the preprocessing that belongs to the weights; with --config, detect or segment.

    Images that cannot be read are reported and left out; the exit code is then 1.
    """
    if config:
        sources = ((name, context.get_parameter_source(name)) for name in _OF_CLASSIFIERS)
        given = [name for name, source in sources if source and source.name == "COMMANDLINE"]
        if given:
            raise typer.BadParameter(f"--{given[0].replace('_', '-')} is for classifiers, not for a --config")
        if not checkpoint or not out:
            raise typer.BadParameter("--config needs weights in --checkpoint and a folder to write to in --out")
        reserve_folder(context, out, ["predictions.json"], force=force)
        _predict_dense(images, config, checkpoint, entry, out, min_score, device, as_json)
        return
    if out or force:
        raise typer.BadParameter("--out and --force go with --config")
    check_model_is_named(model, checkpoint)
    if checkpoint and not pretrained:
        raise typer.BadParameter("--checkpoint and --no-pretrained exclude each other")
    from .._images import find_images
    from ._checkpoint import load_model
    from ._images import classify
    from ._labels import class_names

    files = find_images(images)
    network = load_model(model, checkpoint, pretrained, entry)
    if not network.num_classes:
        raise ValueError(f"{checkpoint or model} has no classifier, so it cannot name what is in an image")
    predictions = classify(
        network,
        files,
        class_names(network, labels),
        topk=topk,
        batch_size=batch_size,
        device=device,
        dtype=dtype.for_optimizing(),
        data_args={"img_size": img_size, "crop_pct": crop_pct},
    )
    results = _with_progress_bar(predictions, len(files))
    _show(results, model or str(checkpoint), as_json)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _predict_dense(
    images: list[Path],
    config: str,
    checkpoint: Path,
    entry: str | None,
    out: Path,
    min_score: float,
    device: str,
    as_json: bool,
) -> None:
    from .._images import find_images
    from .mm_predict import predict_dense, text_lines

    files = find_images(images)
    with redirect_stdout(sys.stderr):  # mmseg and mmengine print
        predictions = predict_dense(
            images, files, config, checkpoint, out, entry=entry, min_score=min_score, device=device
        )
        entries = _with_progress_bar(predictions, len(files), "Predicting")
    text = json.dumps(
        {"config": config, "checkpoint": str(checkpoint), "predictions": entries}, indent=2, allow_nan=False
    )
    try:  # print first, in case the disk is full
        if as_json:
            typer.echo(text)
        for found in entries:
            if "error" in found and not as_json:
                print_error(f"{found['image']}: {found['error']}")
            elif not as_json:
                typer.echo("\n".join(text_lines(found)))
    finally:
        with replacing(out / "predictions.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if any("error" in found for found in entries):
        raise typer.Exit(1)


def _with_progress_bar(predictions: Iterator[T], total: int, doing: str = "Classifying") -> list[T]:
    """Collect all predictions, with a progress bar if there is more than one image."""
    from .evaluate import progress_bar

    collected = []
    with progress_bar(doing, hidden=total == 1) as on_progress:
        for prediction in predictions:
            collected.append(prediction)
            on_progress(len(collected), total)
    return collected


def _show(results: "list[Prediction]", model: str, as_json: bool) -> None:
    if as_json:
        entries = [
            {"image": r.image, "error": r.error} if r.error else {"image": r.image, "top": [asdict(g) for g in r.top]}
            for r in results
        ]
        typer.echo(json.dumps({"model": model, "predictions": entries}, indent=2, allow_nan=False))
        return
    for result in results:
        if result.error:
            print_error(f"{result.image}: {result.error}")
            continue
        typer.echo(result.image)
        for guess in result.top:
            typer.echo(f"  {100 * guess.probability:6.2f} %  {guess.label}")

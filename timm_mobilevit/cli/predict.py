"""``timm-mobilevit predict``."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from .._files import replacing
from . import _options as options
from ._errors import print_error
from ._targets import reserve_folder

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
    images: options.Images,
    model: options.Model = "",
    checkpoint: options.Checkpoint = None,
    entry: options.Entry = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            help="Use the published weights, downloaded once; without them and without --checkpoint, "
            "the weights are random, the same each time."
        ),
    ] = True,
    topk: Annotated[int, typer.Option(min=1, help="How many classes to tell.")] = 5,
    labels: options.Labels = None,
    img_size: options.ImgSize = None,
    crop_pct: options.CropPct = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
    config: options.Config = "",
    out: Annotated[
        Path | None,
        typer.Option(help="With --config: folder to write pictures and predictions.json to.", show_default=False),
    ] = None,
    min_score: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --config: smallest score of a detection.")
    ] = 0.3,
    force: options.Force = False,
) -> None:
    """Classify images with the preprocessing that belongs to the weights; with --config, detect or segment.

    Classes are named by --labels, or else by the checkpoint directory, or ImageNet's. With --config, --checkpoint and
    --out are needed too; boxes or masks are drawn.

    Images that cannot be read are reported and left out; the exit code is then 1.
    """
    if config:
        if given := options.given_option(context, _OF_CLASSIFIERS):
            raise typer.BadParameter(f"{given} is for classifiers, not for a --config")
        if not checkpoint or not out:
            raise typer.BadParameter("--config needs weights in --checkpoint and a folder to write to in --out")
        reserve_folder(context, out, ["predictions.json"], force=force)
        from .._images import find_images
        from .mm_predict import predict_dense, text_lines

        files = find_images(images)
        with redirect_stdout(sys.stderr):  # mmseg and mmengine print
            dense = predict_dense(
                images, files, config, checkpoint, out, entry=entry, min_score=min_score, device=device
            )
            entries = _with_progress_bar("Predicting", dense, len(files))
        text = _as_json(entries, config=config, checkpoint=str(checkpoint))
        try:  # print first, in case the disk is full
            _show(entries, text_lines, text if as_json else "")
        finally:
            with replacing(out / "predictions.json") as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    else:
        if given := options.given_option(context, ("out", "min_score", "force")):
            raise typer.BadParameter(f"{given} goes with --config")
        options.check_model_is_named(model, checkpoint)
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
            dtype=options.for_optimizing(dtype),
            data_args={"img_size": img_size, "crop_pct": crop_pct},
        )
        entries = _with_progress_bar("Classifying", predictions, len(files))
        _show(entries, _classes, _as_json(entries, model=model or str(checkpoint)) if as_json else "")
    if any("error" in entry for entry in entries):
        raise typer.Exit(1)


def _with_progress_bar(doing: str, predictions: Iterable[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """Collect all predictions, with a progress bar if there is more than one image."""
    from .evaluate import progress_bar

    collected = []
    with progress_bar(doing, hidden=total == 1) as on_progress:
        for prediction in predictions:
            collected.append(prediction)
            on_progress(len(collected), total)
    return collected


def _as_json(entries: list[dict[str, Any]], **about: str) -> str:
    return json.dumps({**about, "predictions": entries}, indent=2, allow_nan=False)


def _show(entries: list[dict[str, Any]], lines: Callable[[dict[str, Any]], Iterator[str]], document: str) -> None:
    """Print a document, or, if it is empty, the lines of each entry."""
    if document:
        typer.echo(document)
        return
    for entry in entries:
        if "error" in entry:
            print_error(f"{entry['image']}: {entry['error']}")
        else:
            typer.echo("\n".join(lines(entry)))


def _classes(entry: dict[str, Any]) -> Iterator[str]:
    yield entry["image"]
    for guess in entry["top"]:
        yield f"  {100 * guess['probability']:6.2f} %  {guess['label']}"

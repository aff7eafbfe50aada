"""``timm-mobilevit predict``."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._errors import print_error
from ._options import BatchSize, Checkpoint, CropPct, Device, Images, ImgSize, Json, Model, check_model_is_named

if TYPE_CHECKING:
    from ._images import Prediction

EXAMPLES = (
    "timm-mobilevit predict cat.jpg --model mobilevitv2_1_0",
    "timm-mobilevit predict photos --model mobilevitv2_2_0.cvnets_in22k_ft_in1k_384 --device cuda --json",
    "timm-mobilevit predict scans --checkpoint digits",
    "timm-mobilevit predict scan.png --model mobilevitv3_xxs --checkpoint output/train/model_best.pth.tar "
    "--img-size 64 --labels classes.txt",
)


def predict(
    images: Images,
    model: Model = "",
    checkpoint: Checkpoint = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            help="Use the published weights, downloaded once; without them and without --checkpoint, "
            "the weights are random."
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
    as_json: Json = False,
) -> None:
    """Classify images with the preprocessing that belongs to the weights.

    Images that cannot be read are reported and left out; the exit code is then 1.
    """
    check_model_is_named(model, checkpoint)
    if checkpoint and not pretrained:
        raise typer.BadParameter("--checkpoint and --no-pretrained exclude each other")
    from ._checkpoint import load_model
    from ._images import classify, find_images
    from ._labels import class_names

    files = find_images(images)
    network = load_model(model, checkpoint, pretrained)
    if not network.num_classes:
        raise ValueError(f"{checkpoint or model} has no classifier, so it cannot name what is in an image")
    predictions = classify(
        network,
        files,
        class_names(network, labels),
        topk=topk,
        batch_size=batch_size,
        device=device,
        data_args={"img_size": img_size, "crop_pct": crop_pct},
    )
    results = _with_progress_bar(predictions, len(files))
    _show(results, model or str(checkpoint), as_json)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _with_progress_bar(predictions: "Iterator[Prediction]", total: int) -> "list[Prediction]":
    """All predictions; while they are made, stderr shows a bar if it is a terminal and there is more than one."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)  # stdout holds nothing but the result
    hidden = total == 1 or not console.is_terminal
    return list(track(predictions, "Classifying", total, console=console, transient=True, disable=hidden))


def _show(results: "list[Prediction]", model: str, as_json: bool) -> None:
    if as_json:
        entries = [
            {"image": r.image, "error": r.error} if r.error else {"image": r.image, "top": [asdict(g) for g in r.top]}
            for r in results
        ]
        typer.echo(json.dumps({"model": model, "predictions": entries}, indent=2))
        return
    for result in results:
        if result.error:
            print_error(f"{result.image}: {result.error}")
            continue
        typer.echo(result.image)
        for guess in result.top:
            typer.echo(f"  {100 * guess.probability:6.2f} %  {guess.label}")

"""``timm-mobilevit evaluate``."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .._version import __version__
from ..export.formats import is_exported
from . import _options as options
from ._targets import reserve_folder

if TYPE_CHECKING:
    from ..convert.layouts import ChannelOrder

EXAMPLES = (
    "timm-mobilevit evaluate imagenet --model mobilevitv2_1_0 --device cuda --dtype bfloat16 --out results",
    "timm-mobilevit evaluate digits-images --checkpoint digits",
    "timm-mobilevit evaluate imagenet --model mobilevitv3_s --checkpoint unknown.pt --channel-order both --limit 5000",
)


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with one folder of images per class, or with one per split.")],
    model: options.Model = "",
    checkpoint: options.Checkpoint = None,
    entry: options.Entry = None,
    split: options.Split = "validation",
    channel_order: Annotated[
        Literal["rgb", "bgr", "both"] | None,
        typer.Option(
            help="Order in which the weights get the channels of the images. If it is given, a checkpoint file is "
            "taken as it is, without the reversal that is known for its format. `both` names the better one.",
            show_default=False,
        ),
    ] = None,
    img_size: options.ImgSize = None,
    crop_pct: options.CropPct = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write evaluate.json and evaluate.csv to.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure top-1 and top-5 accuracy with the preprocessing that belongs to the weights."""
    options.check_model_is_named(model, checkpoint)
    if out:
        reserve_folder(context, out, ("evaluate.json", "evaluate.csv"), claim="evaluate")
    import timm
    import torch
    from timm.data import resolve_input_data_config

    from ..evaluate import better_order, write_results
    from ..evaluate import evaluate as measure
    from ._checkpoint import load_model
    from ._images import usable_device

    network = load_model(model, checkpoint, True, entry, "rgb" if channel_order else None)  # "rgb" reverses nothing
    orders: list[ChannelOrder] = ["rgb", "bgr"] if channel_order == "both" else [channel_order or "rgb"]
    with progress_bar("Evaluating") as on_batch:
        accuracies = measure(
            network,
            data,
            split=split,
            channel_orders=orders,
            img_size=img_size,
            crop_pct=crop_pct,
            limit=limit,
            batch_size=batch_size,
            workers=workers,
            device=usable_device(device),
            dtype=options.for_optimizing(dtype),
            on_batch=on_batch,
        )
    document = {
        "model": model or str(checkpoint),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "data": str(data),
        "preprocessing": resolve_input_data_config(network, {"img_size": img_size, "crop_pct": crop_pct}),
        "dtype": dtype,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "timm_mobilevit": __version__,
        "results": [{**asdict(one), "top1_standard_error": one.standard_error} for one in accuracies],
    }
    if channel_order == "both":
        document["better"] = better_order(accuracies)
    try:  # print first, in case the disk is full; write the files even if stdout is a closed pipe
        if as_json:
            typer.echo(json.dumps(document, indent=2, allow_nan=False))
        else:
            for one in accuracies:
                typer.echo(
                    f"{one.channel_order}: top-1 {one.top1:.2f} % (± {one.standard_error:.2f}), "
                    f"top-5 {one.top5:.2f} %, {one.images:,} images"
                )
            if channel_order == "both":
                typer.echo(_verdict(document["better"], checkpoint))
    finally:
        if out:
            rows = [{"model": document["model"], "data": str(data), **row} for row in document["results"]]
            write_results(out, "evaluate", document, rows)


@contextmanager
def progress_bar(text: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, if it is a terminal, and give a function that sets it: how many are done, of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)  # stdout holds nothing but the result
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _verdict(better: str | None, checkpoint: Path | None) -> str:
    if better is None:
        return "better: undecided, the difference is within twice its standard error; use more images"
    if checkpoint is None or checkpoint.is_dir() or is_exported(checkpoint):
        return f"better: {better}"
    return f"better: {better}; convert {checkpoint} with --channel-order {better}"

"""``timm-mobilevit verify``."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._errors import print_error
from ._options import Amp, BatchSize, Device, Json, Limit, Split, Workers
from ._targets import reserve_folder
from .evaluate import describe, progress_bar, versions

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = (
    "timm-mobilevit verify imagenet --device cuda --amp --out results",
    "timm-mobilevit verify imagenet --only v3 --download --device cuda --out results",
    "timm-mobilevit verify --commands > verify_dense.sh",
)


def verify(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="ImageNet's validation images, one folder per class.", show_default=False)
    ] = None,
    only: Annotated[
        str, typer.Option(help="Part of the names to verify, or wildcards as in file names.", show_default=False)
    ] = "",
    download: Annotated[
        bool,
        typer.Option("--download", help="Download weights that are not in the cache; otherwise they are left out."),
    ] = False,
    commands: Annotated[
        bool,
        typer.Option(
            "--commands", help="Print shell commands that verify the detectors and segmentors, and do nothing else."
        ),
    ] = False,
    split: Split = "validation",
    limit: Limit = None,
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    device: Device = "cpu",
    amp: Amp = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write verify.json and verify.csv to.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the published weights on ImageNet and compare them with the published top-1.

    Only weights in the local cache are measured. Those that cannot be loaded are reported; the exit code is then 1.
    """
    if commands == (data is not None):
        raise typer.BadParameter("give DATA to verify classifiers, or --commands for detectors and segmentors")
    if data is None:
        typer.echo("\n".join(_dense_commands(only)))
        return
    if out:
        reserve_folder(context, out, ("verify.json", "verify.csv"), claim="verify")
    from ..evaluation.accuracy import evaluate, write_results
    from ._images import usable_device
    from ._registry import find_names

    options: dict[str, Any] = {"split": split, "limit": limit, "batch_size": batch_size, "workers": workers}
    where = usable_device(device)
    document: dict[str, Any] = {"data": str(data), "amp": amp, **versions(device), "rows": [], "absent": []}
    for name in find_names(only, tags=True):
        try:
            network = _load(name, download)
        except (OSError, ValueError, RuntimeError) as error:
            print_error(f"{name}: {error}")
            document["rows"].append(_row(name, error=str(error)))
            continue
        if network is None:
            document["absent"].append(name)
            continue
        with progress_bar(name) as on_batch:
            (accuracy,) = evaluate(network, data, device=where, amp=amp, on_batch=on_batch, **options)
        document["rows"].append(_row(name, **describe(accuracy)))
        if out:  # after each row, so that what took hours outlives an interruption
            with suppress(OSError):  # a full disk may have room at the end, where an error is one
                write_results(out, "verify", document, document["rows"])
    rows, absent = document["rows"], document["absent"]
    if not rows:
        raise FileNotFoundError(f"none of {len(absent)} sets of weights is in the cache; --download fetches them")
    try:  # first on the screen, as in `evaluate`
        if as_json:
            typer.echo(json.dumps(document, indent=2, allow_nan=False))
        else:
            _show(rows)
            if absent:
                typer.echo(f"Not in the cache, left out: {', '.join(absent)}. --download fetches them.")
    finally:
        if out:
            write_results(out, "verify", document, rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def find_cached(name: str, work: Path) -> Path | None:
    """Find the file of published weights on this machine, without a request.

    Looked for where ``timm.create_model(name, pretrained=True)`` would: in the directory that
    ``TIMM_MOBILEVIT_WEIGHTS`` names, then in the cache.

    Args:
        name: Architecture and tag.
        work: Empty directory for a checkpoint that has to be taken out of an archive.

    Raises:
        ValueError: If several files of the directory fit.
        NotADirectoryError: If ``TIMM_MOBILEVIT_WEIGHTS`` names no directory.
    """
    from huggingface_hub import try_to_load_from_cache

    from ..weights.fetch import _Entry, _from_tree, _tree
    from ..weights.pretrained import WEIGHTS

    row = WEIGHTS[name]
    if row.hf_hub_id:
        files = (try_to_load_from_cache(row.hf_hub_id, file) for file in ("model.safetensors", "pytorch_model.bin"))
        return next((Path(file) for file in files if isinstance(file, str)), None)
    tree = _tree()
    source = _from_tree(row, tree, work) if tree else None
    return source.checkpoint if source else _Entry(name, row).find()


def _load(name: str, download: bool) -> "nn.Module | None":
    """The published model; None where its weights are absent."""
    import tempfile

    import timm

    from ..weights.loading import from_the_file_only

    with tempfile.TemporaryDirectory() as work:
        file = find_cached(name, Path(work))
        if file is None and not download:
            return None
        # As a file, so that the hub is not asked whether there is a newer one.
        overlay = {"file": str(file)} if file else None
        with from_the_file_only():
            network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    return network


def _row(name: str, *, error: str = "", **measured: Any) -> dict[str, Any]:
    from ..weights.pretrained import WEIGHTS

    published = WEIGHTS[name].top1
    return {
        "name": name,
        "published_top1": published,
        "top1": measured.get("top1"),
        "difference": measured["top1"] - published if measured else None,
        **{key: measured.get(key) for key in ("top1_standard_error", "top5", "images")},
        "error": error,
    }


# Heading: how a row that was measured fills the column.
_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "Published": lambda row: f"{row['published_top1']:.2f}",
    "Measured": lambda row: f"{row['top1']:.2f}",
    "Difference": lambda row: f"{row['difference']:+.2f} ± {row['top1_standard_error']:.2f}",
    "Images": lambda row: f"{row['images']:,}",
}


def _show(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Top-1 (%)", overflow="fold")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    for row in rows:
        if not row["error"]:
            table.add_row(row["name"], *(cell(row) for cell in _COLUMNS.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # nothing is cut off in a file or a pipe
    console.print(table)


def _dense_commands(pattern: str) -> Iterator[str]:
    """Shell commands that test each published detector and segmentor with MMDetection's and MMSegmentation's tools."""
    import fnmatch

    import yaml  # type: ignore[import-untyped]

    from ..configs import FOLDER
    from ..weights.fetch import CHECKPOINT
    from ._registry import as_wildcards

    models = [
        (metafile.parts[-3], model)
        for metafile in sorted(FOLDER.glob("*/*/metafile.yml"))
        for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]
        if fnmatch.fnmatchcase(model["Name"], as_wildcards(pattern))
    ]
    if not models:
        raise ValueError(f"no config matches {pattern!r}; `timm-mobilevit config` shows all")
    yield "# Needs timm-mobilevit[mm], and COCO, ADE20K and PASCAL VOC 2012 in data/ as mm_configs/README.md says."
    yield 'mmdet=$(python -c "import mmdet; print(mmdet.__path__[0])")/.mim/tools'
    yield 'mmseg=$(python -c "import mmseg; print(mmseg.__path__[0])")/.mim/tools'
    yield "mkdir -p verify"
    for tools, model in models:
        name, origin = model["Name"], model["Converted From"]
        (result,) = model["Results"]
        ((metric, value),) = result["Metrics"].items()
        official = shlex.quote(f"verify/{name}.pt")
        yield f"\n# {name}: {metric} {value} on {result['Dataset']}"
        if "Folder" in origin:
            official = shlex.quote(f"{origin['Folder']}/{CHECKPOINT}")
            yield f"# Download {origin['Folder']} by hand from {origin['Weights']} and unpack it here."
        else:
            yield f"curl -fL {shlex.quote(origin['Weights'])} -o {official} &&"
        config, converted = shlex.quote(name), shlex.quote(f"verify/{name}.pth")
        yield f"timm-mobilevit convert {official} --config {config} --out {converted} --force &&"
        test = f'python "${tools}/test.py" "$(timm-mobilevit config {config})" {converted}'
        yield f"{test} --work-dir {shlex.quote(f'verify/{name}')}"

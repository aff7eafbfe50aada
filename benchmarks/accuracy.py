"""Measured against published accuracy: ``python -m benchmarks.accuracy IMAGENET --device cuda --workers 8``.

``IMAGENET`` holds the validation images, one folder per class, or a folder ``val`` that does. Published weights on this
machine are measured; ``--download`` gets those that are not there. The CSV file is written after each row.
``--commands`` prints shell commands that test the published detectors and segmentors with MMDetection's and
MMSegmentation's own tools.
"""

import fnmatch
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import timm
import typer
import yaml
from huggingface_hub import constants

from timm_mobilevit.cli._options import Dtype, for_optimizing
from timm_mobilevit.configs import FOLDER
from timm_mobilevit.evaluate import evaluate
from timm_mobilevit.weights.fetch import CHECKPOINT
from timm_mobilevit.weights.loading import from_the_file_only
from timm_mobilevit.weights.pretrained import WEIGHTS

from ._device import all_threads, prepare
from ._progress import progress
from ._results import RESULTS, file_name, origin, write


def dense_commands(pattern: str) -> Iterator[str]:
    """Give shell commands that download, convert and test each published detector and segmentor whose name matches."""
    models = [
        (metafile.parts[-3], model)
        for metafile in sorted(FOLDER.glob("*/*/metafile.yml"))
        for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]
        if fnmatch.fnmatchcase(model["Name"], pattern)
    ]
    yield "# Needs timm-mobilevit[mm], and COCO, ADE20K and PASCAL VOC 2012 in data/ as mm_configs/README.md says."
    yield 'mmdet=$(python -c "import mmdet; print(mmdet.__path__[0])")/.mim/tools'
    yield 'mmseg=$(python -c "import mmseg; print(mmseg.__path__[0])")/.mim/tools'
    yield "mkdir -p accuracy"
    for tools, model in models:
        name, source = model["Name"], model["Converted From"]
        (result,) = model["Results"]
        ((metric, value),) = result["Metrics"].items()
        official = shlex.quote(f"accuracy/{name}.pt")
        yield f"\n# {name}: {metric} {value} on {result['Dataset']}"
        if "Folder" in source:
            official = shlex.quote(f"{source['Folder']}/{CHECKPOINT}")
            yield f"# Download {source['Folder']} by hand from {source['Weights']} and unpack it here."
        else:
            yield f"curl -fL {shlex.quote(source['Weights'])} -o {official} &&"
        config, converted = shlex.quote(name), shlex.quote(f"accuracy/{name}.pth")
        yield f"timm-mobilevit convert {official} --config {config} --out {converted} --force &&"
        test = f'python "${tools}/test.py" "$(timm-mobilevit config {config})" {converted}'
        yield f"{test} --work-dir {shlex.quote(f'accuracy/{name}')}"


def main(
    data: Annotated[Path | None, typer.Argument(help="ImageNet's validation images.", show_default=False)] = None,
    only: Annotated[str, typer.Option(help="Names to measure, with wildcards as in file names.")] = "*",
    commands: Annotated[bool, typer.Option("--commands", help="Print commands for detectors and segmentors.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Download weights that are not here.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of images, evenly spaced; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Dtype = "float32",
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure the published weights on ImageNet beside their published top-1; exit with 1 if any cannot be loaded."""
    if commands == (data is not None):
        raise typer.BadParameter("give DATA to measure classifiers, or --commands for detectors and segmentors")
    if data is None:
        typer.echo("\n".join(dense_commands(only)))
        return
    names = fnmatch.filter(WEIGHTS, only)
    if not names:
        raise typer.BadParameter(f"no published weights match {only!r}")
    try:
        prepare(device, all_threads())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    constants.HF_HUB_OFFLINE = not download
    path = out / file_name(f"accuracy-{'fp32' if dtype == 'float32' else 'bf16'}", device)
    rows, absent = [], []
    with progress(len(names)) as begin:
        for name in names:
            begin(name)
            try:
                with from_the_file_only():
                    model = timm.create_model(name, pretrained=True)
            except Exception as error:
                absent.append(f"{name}: {error}")
                continue
            try:
                (accuracy,) = evaluate(
                    model,
                    data,
                    limit=limit,
                    batch_size=batch_size,
                    workers=workers,
                    device=device,
                    dtype=for_optimizing(dtype),
                )
            except (OSError, ValueError) as error:  # of the images: it would be the same for every model
                raise typer.BadParameter(str(error)) from error
            published = WEIGHTS[name].top1
            measured = asdict(accuracy) | {"standard_error": accuracy.standard_error}
            rows.append({"model": name, "published_top1": published, **measured, **origin(device)})
            write(rows, path)
            difference = f"{accuracy.top1 - published:+.2f} ± {accuracy.standard_error:.2f}"
            typer.echo(f"{name:44} {published:6.2f} {accuracy.top1:6.2f} {difference:>14}")
    if absent:
        typer.echo("\n".join(["Not measured:", *absent]), err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

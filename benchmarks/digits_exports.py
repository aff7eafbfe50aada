"""Accuracy of the digits models in every format that runs here: ``python -m benchmarks.digits_exports``.

Each network that ``benchmarks.digits`` trained is written in each precision of each format, and classifies the scans
that it was not trained on, in the runtime of the format. Eight bits are calibrated on scans that it was trained on.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import timm
import typer

from timm_mobilevit.evaluate import evaluate
from timm_mobilevit.export import ExportedModel
from timm_mobilevit.export.formats import FORMATS

from . import digits
from ._device import prepare
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from .quantization import NETWORKS, train_missing
from .runtimes import PRECISIONS, RUN_HERE, NotOfferedError, write_network


def measure(name: str, model_folder: Path, data: Path, to: str) -> list[dict[str, object]]:
    """Rows of one network in one format, one for each precision; accuracy is in percent.

    Args:
        name: What the network is called.
        model_folder: What ``benchmarks.digits`` wrote.
        data: Image folder with ``train``, which the calibration images are from, and ``val``.
        to: A key of ``timm_mobilevit.export.formats.FORMATS``.
    """
    network = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    (expected,) = evaluate(network, data, workers=0)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            path = Path(folder, f"{precision}{FORMATS[to].ending}")
            note, top1 = "", ""
            try:
                size = network.pretrained_cfg["input_size"]
                write_network(network, to, precision, path, size, calibration=data / "train")
                (found,) = evaluate(ExportedModel(path), data, workers=0)
                top1 = f"{found.top1:.2f}"
            except NotOfferedError:
                continue
            except (ValueError, RuntimeError, ImportError) as error:
                note = f"{type(error).__name__}: {error}"
            rows.append(
                {
                    "network": name,
                    "format": to,
                    "precision": precision,
                    "images": expected.images,
                    "digits_top1_torch": f"{expected.top1:.2f}",
                    "digits_top1": top1,
                    "note": note,
                    **origin("cpu"),
                }
            )
    return rows


def main(
    network: Annotated[list[str] | None, typer.Option(help="One of our models; repeatable.")] = None,
    formats: Annotated[str, typer.Option(help="Formats, separated by commas.")] = ",".join(RUN_HERE),
    data: Annotated[Path, typer.Option(file_okay=False, help="Digit scans, written if missing.")] = digits.DATA,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Export each network, and classify the held-out scans."""
    prepare("cpu", 1)
    wanted = tuple(formats.split(","))
    if unknown := sorted(set(wanted) - set(RUN_HERE)):
        raise typer.BadParameter(f"expected formats of {', '.join(RUN_HERE)}, got {', '.join(unknown)}")
    folders = train_missing(network or NETWORKS, data)
    path = out / file_name("digits-exports", "cpu", PRECISIONS)
    rows: list[dict[str, object]] = []
    with progress(len(folders) * len(wanted)) as begin:
        for name, folder in folders.items():
            for to in wanted:
                begin(f"{name} {to}")
                rows += measure(name, folder, data, to)
                write(rows, path)
    for row in rows:
        typer.echo(
            f"{row['network']} {row['format']} {row['precision']}: "
            f"{row['note'] or str(row['digits_top1_torch']) + ' -> ' + str(row['digits_top1']) + ' %'}"
        )
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

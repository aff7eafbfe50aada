"""Accuracy and speed in ONNX Runtime before and after quantisation: ``python -m benchmarks.quantization``.

The networks are trained on digit scans by ``benchmarks.digits``; where a model folder is missing, it is trained first.
Accuracy is that on the 360 held-out scans, speed that at batch 1 on one thread, each for every type of weights that
``quantize_onnx`` offers. On two CPU cores this takes about 3 minutes, and the training before it 1 minute for
mobilevitv1_xxs, 2 for mobilevitv3_xxs and 4 for mobilevitv2_1_0. Results go to ``benchmarks/results/``, with the
instructions of the processor: int8 depends on them.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from timm.data import resolve_data_config
from torch import nn

from timm_mobilevit.export.onnx import export_onnx
from timm_mobilevit.export.quantize import WEIGHT_TYPES, quantize_onnx

from . import digits
from ._device import prepare
from ._onnx import run
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._timing import Spread, interleave, ratios, spread

NETWORKS = ("mobilevitv1_xxs", "mobilevitv2_1_0", "mobilevitv3_xxs")  # one of each generation
FP32, INT8 = "fp32", "int8"


def export(
    network: nn.Module, size: int, calibration: Path, folder: Path, *, num_images: int = 128
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write a network as it is, and with every type of quantised weights.

    Args:
        network: A classifier.
        size: Side of the square image, in pixels.
        calibration: Folder of images.
        folder: Where to write.
        num_images: How many images to use.

    Returns:
        Files by type of weights, fp32 first; and why the others were refused.
    """
    files, refused = {FP32: folder / f"{FP32}.onnx"}, {}
    export_onnx(network, files[FP32], input_size=(3, size, size), dynamic_size=False)
    for weight_type in WEIGHT_TYPES:
        file = folder / f"{weight_type}.onnx"
        try:
            quantize_onnx(files[FP32], file, calibration, weight_type=weight_type, num_images=num_images)
        except ValueError as error:
            refused[weight_type] = str(error).partition("; ")[2]  # without the name of a temporary file
        else:
            files[weight_type] = file
    return files, refused


def accuracy(network: nn.Module, data: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Share of the held-out scans that a network classifies right in ONNX Runtime, in [0, 1].

    Args:
        network: What ``benchmarks.digits`` trained.
        data: Image folder with ``train``, which the calibration images are from, and ``val``.

    Returns:
        Accuracy by type of weights; and why there is none for the others.
    """
    data_config = resolve_data_config({}, model=network)
    with tempfile.TemporaryDirectory() as folder:
        files, refused = export(network, data_config["input_size"][-1], data / "train", Path(folder))
        right: dict[str, list[bool]] = {weight_type: [] for weight_type in files}
        for images, labels in digits.make_loaders(data, data_config, batch_size=60)[1]:
            for weight_type, file in files.items():
                (logits,) = run(file, images, threads=1)()
                right[weight_type] += list(logits.argmax(1) == labels.numpy())
    return {weight_type: float(np.mean(answers)) for weight_type, answers in right.items()}, refused


def speed(network: nn.Module, data: Path, *, size: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds that a network takes for one image in ONNX Runtime, on one thread, all types of weights in turns.

    Args:
        network: A classifier.
        data: Image folder with ``train``, which the calibration images are from.
        size: Side of the square image, in pixels.
        rounds: Samples of each type.
        seconds: Length of a sample.

    Returns:
        Seconds in each round, by type of weights; without those that were refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        files, _ = export(network, size, data / "train", Path(folder), num_images=8)  # ranges change no speed
        images = torch.rand(1, 3, size, size)
        calls = {weight_type: run(file, images, threads=1) for weight_type, file in files.items()}
        return interleave(calls, rounds=rounds, seconds=seconds)


def measure(
    name: str, model_folder: Path, data: Path, *, size: int, rounds: int, seconds: float
) -> list[dict[str, object]]:
    """Rows of the table, one per type of quantised weights.

    Accuracy is in percent, time in milliseconds with quartiles over the rounds, and the ratio says how many times as
    long fp32 takes. Where a file was refused, there are no figures but a note.
    """
    network = timm.create_model(f"local-dir:{model_folder}", pretrained=True)
    accuracies, refused = accuracy(network, data)
    samples = speed(network, data, size=size, rounds=rounds, seconds=seconds)
    rows: list[dict[str, object]] = []
    for weight_type in WEIGHT_TYPES:
        times = {FP32: spread(samples[FP32]), INT8: spread(samples[weight_type]) if weight_type in samples else None}
        ratio = spread(ratios(samples[FP32], samples[weight_type])) if weight_type in samples else None
        rows.append(
            {
                "network": name,
                "weight_type": weight_type,
                f"digits_top1_{FP32}": f"{100 * accuracies[FP32]:.2f}",
                f"digits_top1_{INT8}": f"{100 * accuracies[weight_type]:.2f}" if weight_type in accuracies else "",
                "size": size,
                "rounds": rounds,
                **{key: text for dtype, time in times.items() for key, text in _quartiles(f"ms_{dtype}", time, 1e3, 2)},
                **dict(_quartiles("ratio", ratio, 1, 3)),
                "note": refused.get(weight_type, ""),
                **origin("cpu"),
            }
        )
    return rows


def _quartiles(name: str, figure: Spread | None, scale: float, digits: int) -> list[tuple[str, str]]:
    """Columns for a figure and its quartiles, empty where there is none."""
    fields = {name: "median", f"{name}_q1": "q1", f"{name}_q3": "q3"}
    return [
        (key, "" if figure is None else f"{scale * getattr(figure, field):.{digits}f}") for key, field in fields.items()
    ]


def train_missing(networks: Sequence[str], data: Path) -> dict[str, Path]:
    """Folders of networks that ``benchmarks.digits`` trained, beside the scans; what is missing is trained.

    Raises:
        typer.BadParameter: If a name is none of our models.
    """
    unknown = sorted(set(networks) - set(timm.list_models(module="mobilevit_zoo")))
    if unknown:
        raise typer.BadParameter(f"expected models that `timm-mobilevit list` shows, got {', '.join(unknown)}")
    folders = {name: data.with_name(f"{data.name}-{name}") for name in networks}
    for name, folder in folders.items():
        if not folder.exists():
            command = ["-m", "benchmarks.digits", "--model", name, "--data", str(data), "--output", str(folder)]
            command += ["--min-accuracy", "0.9"]  # the demo asks for more than a comparison needs
            subprocess.run([sys.executable, *command], check=True)
    return folders


def main(
    network: Annotated[list[str] | None, typer.Option(help="One of our models; repeatable.")] = None,
    data: Annotated[Path, typer.Option(file_okay=False, help="Digit scans, written if missing.")] = digits.DATA,
    img_size: Annotated[int, typer.Option(min=33, help="Side of the image to time on, in pixels.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 15,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure accuracy and speed before and after quantisation."""
    prepare("cpu", 1)
    folders = train_missing(network or NETWORKS, data)
    path = out / file_name("quantization", "cpu", [FP32, INT8])
    rows: list[dict[str, object]] = []
    with progress(len(folders)) as begin:
        for name, folder in folders.items():
            begin(name)
            rows += measure(name, folder, data, size=img_size, rounds=rounds, seconds=seconds)
            write(rows, path)
    for row in rows:
        figures = (
            f"accuracy {row['digits_top1_fp32']} -> {row['digits_top1_int8']} %, "
            f"{row['ms_fp32']} -> {row['ms_int8']} ms, ratio {row['ratio']} ({row['ratio_q1']} to {row['ratio_q3']})"
        )
        typer.echo(f"{row['network']} {row['weight_type']}: {row['note'] or figures}")
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

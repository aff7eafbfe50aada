"""Accuracy and speed in ONNX Runtime before and after quantisation to int8: ``python -m benchmarks.quantization``.

Accuracy is that on the 360 held-out digit scans, of networks trained by ``benchmarks.digits``; where a model folder is
missing, it is trained first. Speed is that at batch 1 on one thread. On two CPU cores this takes about 2 minutes, and
the training before it 2 minutes for mobilevitv3_xxs and 4 for mobilevitv2_1_0. Results go to ``benchmarks/results/``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from timm.data import resolve_data_config

from timm_mobilevit.export.onnx import export_onnx
from timm_mobilevit.export.quantize import quantize_onnx

from . import digits
from ._device import prepare
from ._onnx import export_ours, quantize, run
from ._peers import build
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._timing import Spread, interleave, ratios, spread

NETWORKS = ("mobilevitv3_xxs", "mobilevitv2_1_0")
FP32, INT8 = "fp32", "int8"


def accuracy(model_folder: Path, data: Path) -> dict[str, float]:
    """Share of the held-out scans that a network classifies right in ONNX Runtime, in [0, 1].

    Args:
        model_folder: What ``benchmarks.digits`` wrote for the network.
        data: Image folder with ``train``, which the calibration images are from, and ``val``.

    Returns:
        Accuracy by data type.
    """
    network = timm.create_model(f"local-dir:{model_folder}", pretrained=True)
    data_config = resolve_data_config({}, model=network)
    with tempfile.TemporaryDirectory() as folder:
        files = {dtype: Path(folder, f"{dtype}.onnx") for dtype in (FP32, INT8)}
        export_onnx(network, files[FP32], input_size=data_config["input_size"], dynamic_size=False)
        quantize_onnx(files[FP32], files[INT8], data / "train")
        right: dict[str, list[bool]] = {dtype: [] for dtype in files}
        for images, labels in digits.make_loaders(data, data_config, batch_size=60)[1]:
            for dtype, file in files.items():
                (logits,) = run(file, images, threads=1)()
                right[dtype] += list(logits.argmax(1) == labels.numpy())
    return {dtype: float(np.mean(answers)) for dtype, answers in right.items()}


def speed(name: str, *, size: int, rounds: int, seconds: float) -> tuple[dict[str, Spread], Spread]:
    """Seconds that a network takes for one image in ONNX Runtime, on one thread, the two data types in turns.

    Args:
        name: One of our models.
        size: Side of the square image, in pixels.
        rounds: Samples of each data type.
        seconds: Length of a sample.

    Returns:
        Seconds by data type; and how many times as long fp32 takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {dtype: Path(folder, f"{dtype}.onnx") for dtype in (FP32, INT8)}
        export_ours(build(name), files[FP32], size)
        quantize(files[FP32], files[INT8], size)
        calls = {dtype: run(file, torch.rand(1, 3, size, size), threads=1) for dtype, file in files.items()}
        samples = interleave(calls, rounds=rounds, seconds=seconds)
    times = {dtype: spread(sample) for dtype, sample in samples.items()}
    return times, spread(ratios(samples[FP32], samples[INT8]))


def measure(name: str, model_folder: Path, data: Path, *, size: int, rounds: int, seconds: float) -> dict[str, object]:
    """A row of the table: accuracy in percent, milliseconds, and their ratio, with quartiles over the rounds."""
    accuracies = accuracy(model_folder, data)
    times, ratio = speed(name, size=size, rounds=rounds, seconds=seconds)
    return {
        "network": name,
        **{f"digits_top1_{dtype}": f"{100 * value:.2f}" for dtype, value in accuracies.items()},
        "size": size,
        "rounds": rounds,
        **{
            f"ms_{dtype}{suffix}": f"{1e3 * value:.2f}"
            for dtype, time in times.items()
            for suffix, value in (("", time.median), ("_q1", time.q1), ("_q3", time.q3))
        },
        "ratio": f"{ratio.median:.3f}",
        "ratio_q1": f"{ratio.q1:.3f}",
        "ratio_q3": f"{ratio.q3:.3f}",
        **origin("cpu"),
    }


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
    networks = network or NETWORKS
    unknown = sorted(set(networks) - set(timm.list_models(module="mobilevit_zoo")))
    if unknown:
        raise typer.BadParameter(f"expected models that `timm-mobilevit list` shows, got {', '.join(unknown)}")
    folders = {name: data.with_name(f"{data.name}-{name}") for name in networks}
    for name, folder in folders.items():
        if not folder.exists():
            command = ["-m", "benchmarks.digits", "--model", name, "--data", str(data), "--output", str(folder)]
            command += ["--min-accuracy", "0.9"]  # the demo asks for more than a comparison needs
            subprocess.run([sys.executable, *command], check=True)
    path = out / file_name("quantization", "cpu", [FP32, INT8])
    rows = []
    with progress(len(folders)) as begin:
        for name, folder in folders.items():
            begin(name)
            rows.append(measure(name, folder, data, size=img_size, rounds=rounds, seconds=seconds))
            write(rows, path)
    for row in rows:
        typer.echo(
            f"{row['network']}: accuracy {row['digits_top1_fp32']} -> {row['digits_top1_int8']} %, "
            f"{row['ms_fp32']} -> {row['ms_int8']} ms, ratio {row['ratio']} ({row['ratio_q1']} to {row['ratio_q3']})"
        )
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

"""Latency and size of exported files in every runtime that runs here: ``python -m benchmarks.runtimes``.

Ours are written by this package, timm's by timmx, which exports timm's models. Each file runs in a process of its own,
and the processes take turns. What cannot be written or run has a note. The packages go together in the environment of
``make test-export``.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from PIL import Image
from timm.models import save_for_hf
from torch import nn

from timm_mobilevit.export import export_model
from timm_mobilevit.export.formats import FORMATS, format_of
from timm_mobilevit.export.runtimes import open_file

from ._apart import interleave_apart, processes
from ._device import prepare
from ._peers import OURS, TIMM, build, build_timm
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._timing import spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_1_0")
PRECISIONS = ("fp32", "fp16", "int8")
RUN_HERE = tuple(name for name, form in FORMATS.items() if form.open)


class NotOfferedError(Exception):
    """There is no such file to write."""


def write_ours(name: str, to: str, precision: str, path: Path, size: int) -> None:
    """Export one of our networks; what calibrates eight bits is noise, enough for their speed."""
    noise = _noise(path.parent, size) if precision == "int8" else None
    write_network(build(name), to, precision, path, (3, size, size), calibration=noise)


def write_network(
    network: nn.Module,
    to: str,
    precision: str,
    path: Path,
    input_size: tuple[int, int, int],
    *,
    calibration: Path | None,
) -> None:
    """Export a network for one image of a fixed size.

    Args:
        network: A classifier of this package.
        to: A key of ``timm_mobilevit.export.formats.FORMATS``.
        precision: One of ``PRECISIONS``.
        path: What to write.
        input_size: Channels, height and width.
        calibration: Folder of images for "int8".

    Raises:
        NotOfferedError: If the format has no such precision.
    """
    options: dict[str, Any] = {"fp32": {}, "fp16": {"half": True}, "int8": {"calibration": calibration}}[precision]
    if not options.keys() <= FORMATS[to].takes.keys():
        raise NotOfferedError
    static = {key: False for key in ("dynamic_batch", "dynamic_size") if key in FORMATS[to].takes}
    export_model(network, path, to, input_size=input_size, **static, **options)


_TIMMX: dict[str, dict[str, Any]] = {  # in float32
    "onnx": {},
    "openvino": {"fp16": False},
    "litert": {"mode": "fp32"},
    "ncnn": {"fp16": False},
    "executorch": {},
}


def write_timm(name: str, to: str, precision: str, path: Path, size: int) -> None:
    """Export timm's network of the same architecture with timmx.

    Raises:
        NotOfferedError: If timm has no such network, or its export no such precision.
        RuntimeError: If timmx cannot write it.
    """
    network = build_timm(build(name), name, exportable=True) if precision == "fp32" else None
    if network is None:
        raise NotOfferedError
    import timmx
    from timmx.errors import TimmxError

    options = _TIMMX[to]
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(network, folder, safe_serialization=True)
        new = Path(folder, path.name)
        try:
            timmx.export_model(
                to, f"local-dir:{folder}", pretrained=True, input_size=(3, size, size), output=new, **options
            )
        except TimmxError as error:
            # The first sentence, without the folders of this machine.
            raise RuntimeError(re.sub(r"\S*/site-packages/", "", str(error).partition(";")[0])) from error
        for part in (new, *(new.with_suffix(ending) for ending in FORMATS[to].siblings)):
            shutil.move(part, path.parent)


WRITERS: dict[str, Callable[[str, str, str, Path, int], None]] = {OURS: write_ours, TIMM: write_timm}


def _noise(folder: Path, size: int) -> Path:
    images = folder / "noise"
    images.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for index in range(8):
        pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(images / f"{index}.png")
    return images


def export_all(
    name: str, folder: Path, *, formats: tuple[str, ...], precisions: tuple[str, ...], size: int
) -> tuple[dict[tuple[str, str, str], Path], dict[tuple[str, str, str], str]]:
    """Write all files of a network.

    Returns:
        Files, and why there is none, by source, format and precision. What is not offered is in neither.
    """
    files, notes = {}, {}
    for source, writer in WRITERS.items():
        for to in formats:
            for precision in precisions:
                path = folder / source / to / precision / f"{name}{FORMATS[to].ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    if not path.exists():
                        writer(name, to, precision, path, size)
                except NotOfferedError:
                    continue
                except (ValueError, RuntimeError, ImportError) as error:
                    notes[source, to, precision] = f"{type(error).__name__}: {error}"
                else:
                    files[source, to, precision] = path
    return files, notes


def mebibytes(path: Path) -> float:
    """Size of a file and of those that belong to it.

    Example:
        >>> file = Path(tempfile.mkdtemp(), "model.tflite")
        >>> file.write_bytes(bytes(2**20)), mebibytes(file)
        (1048576, 1.0)
    """
    siblings = FORMATS[format_of(path)].siblings
    parts = [path, *(path.with_suffix(ending) for ending in siblings), *path.rglob("*")]
    return sum(part.stat().st_size for part in parts if part.is_file()) / 2**20


def _call(path: Path, threads: int, size: int) -> Callable[[], object]:
    """Return a pass of one image through a file in its runtime."""
    run = open_file(path, threads=threads)
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    return lambda: run(image)


def measure(
    name: str,
    folder: Path,
    *,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    size: int,
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
) -> list[dict[str, object]]:
    """Rows of one network, one for each source, format, precision and number of threads.

    Args:
        name: One of our models.
        folder: Where to write the files, and where they are taken from if they are there already.
        formats: Keys of ``timm_mobilevit.export.formats.FORMATS``.
        precisions: Some of ``PRECISIONS``.
        size: Side of the square image, in pixels.
        threads: Numbers of threads, one after the other.
        rounds: Samples of each file.
        seconds: Length of a sample.
    """
    rows: list[dict[str, object]] = []
    files, notes = export_all(name, folder, formats=formats, precisions=precisions, size=size)
    typer.echo(f"{name}: {len(files)} files, {len(notes)} failed", err=True)
    with processes(files) as executors:
        for count in threads:
            makers = {key: partial(_call, path, count, size) for key, path in files.items()}
            samples, missing = interleave_apart(executors, makers, rounds=rounds, seconds=seconds)
            for key in (*files, *notes):
                times = spread([1e3 * sample for sample in samples[key]]) if key in samples else None
                rows.append(
                    {
                        "network": name,
                        **dict(zip(("source", "format", "precision"), key, strict=True)),
                        "size": size,
                        "rounds": rounds,
                        "mib": f"{mebibytes(files[key]):.2f}" if key in files else "",
                        "ms": f"{times.median:.2f}" if times else "",
                        "ms_q1": f"{times.q1:.2f}" if times else "",
                        "ms_q3": f"{times.q3:.2f}" if times else "",
                        "note": {**notes, **missing}.get(key, ""),
                        **origin("cpu"),
                        "threads": count,
                    }
                )
    return rows


def main(
    network: Annotated[list[str] | None, typer.Option(help="One of our models; repeatable.")] = None,
    formats: Annotated[str, typer.Option(help="Formats, separated by commas.")] = ",".join(RUN_HERE),
    precisions: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = ",".join(PRECISIONS),
    img_size: Annotated[int, typer.Option(min=33, help="Side of the image, in pixels.")] = 256,
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    files: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to keep the files in, and to take them from.")
    ] = None,
    export_only: Annotated[bool, typer.Option("--export-only", help="Only write the files.")] = False,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Export, then time."""
    prepare("cpu", 1)
    networks = network or NETWORKS
    wanted = tuple(formats.split(","))
    if unknown := sorted(set(networks) - set(timm.list_models(module="mobilevit_zoo"))):
        raise typer.BadParameter(f"expected models that `timm-mobilevit list` shows, got {', '.join(unknown)}")
    kinds = tuple(precisions.split(","))
    for what, given, known in (("formats", wanted, RUN_HERE), ("precisions", kinds, PRECISIONS)):
        if unknown := sorted(set(given) - set(known)):
            raise typer.BadParameter(f"expected {what} of {', '.join(known)}, got {', '.join(unknown)}")
    path = out / file_name("exported", "cpu", kinds)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch, progress(len(networks)) as begin:
        folder = files or Path(scratch)
        for name in networks:
            begin(name)
            if export_only:
                export_all(name, folder, formats=wanted, precisions=kinds, size=img_size)
                continue
            rows += measure(
                name,
                folder,
                formats=wanted,
                precisions=kinds,
                size=img_size,
                threads=tuple(int(count) for count in threads.split(",")),
                rounds=rounds,
                seconds=seconds,
            )
            write(rows, path)
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

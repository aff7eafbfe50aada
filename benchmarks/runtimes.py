"""Latency and size of exported files in every runtime that runs here: ``python -m benchmarks.runtimes``.

Ours are written by this package, timm's by timmx, which exports timm's models. Each file runs in a process of its own
that loads nothing but its runtime's packages; the processes take turns, and those that wait sleep. What cannot be
written or run has a note. The packages go together in the environment of ``make test-export``.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from PIL import Image
from timm.models import save_for_hf

from timm_mobilevit.export import export_executorch, export_onnx, export_with_timmx, quantize_onnx
from timm_mobilevit.formats import FORMATS

from ._device import prepare
from ._peers import OURS, TIMM, build, build_timm
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._timing import spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_1_0")
PRECISIONS = ("fp32", "fp16", "int8")
RUN_HERE = tuple(name for name, form in FORMATS.items() if not form.unverified)

# Reads how many seconds to run, prints the mean seconds of one image.
_WORKER = """
import sys, time
from pathlib import Path
import numpy as np
import torch
from timm_mobilevit.export.runtimes import open_file
torch.set_num_threads(1)
run = open_file(Path(sys.argv[1]), threads=int(sys.argv[2]))
size = int(sys.argv[3])
image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
run(image)
print("ready", flush=True)
for line in sys.stdin:
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < float(line):
        run(image)
        count += 1
    print((time.perf_counter() - start) / count, flush=True)
"""


def write_ours(name: str, to: str, precision: str, path: Path, size: int) -> None:
    """Export one of our networks.

    Raises:
        ValueError: If the format has no such precision.
    """
    network, options = build(name), {"input_size": (3, size, size)}
    takes = FORMATS[to].takes
    if (precision == "fp16" and "--half" not in takes) or (precision == "int8" and "--int8" not in takes):
        raise ValueError("not offered")
    noise = _noise(path.parent, size) if precision == "int8" else None  # enough for its speed
    if FORMATS[to].timmx is not None:
        export_with_timmx(network, path, to, half=precision == "fp16", calibration=noise, **options)
    elif to == "executorch":
        export_executorch(network, path, calibration=noise, **options)
    elif precision == "int8":
        export_onnx(network, path.with_name("float.onnx"), dynamic_batch=False, dynamic_size=False, **options)
        quantize_onnx(path.with_name("float.onnx"), path, noise)
    else:
        half = {"half": True} if precision == "fp16" else {}
        export_onnx(network, path, dynamic_batch=False, dynamic_size=False, **half, **options)


def write_timm(name: str, to: str, precision: str, path: Path, size: int) -> None:
    """Export timm's network of the same architecture with timmx.

    Raises:
        ValueError: If timm has none, or its export no such precision.
        RuntimeError: If timmx cannot write it.
    """
    import timmx
    from timmx.errors import TimmxError

    network = build_timm(build(name), name, exportable=True)
    if network is None or precision != "fp32":
        raise ValueError("not offered")
    folder = path.parent / "timm"
    save_for_hf(network, folder, safe_serialization=True)
    options = {key: value for key, value in (FORMATS[to].timmx or {}).items() if key != "verify"}
    try:
        timmx.export_model(
            to, f"local-dir:{folder}", pretrained=True, input_size=(3, size, size), output=path, **options
        )
    except TimmxError as error:
        raise RuntimeError(str(error).partition(";")[0]) from error


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
    name: str, folder: Path, *, formats: tuple[str, ...], size: int
) -> tuple[dict[tuple[str, str, str], Path], dict[tuple[str, str, str], str]]:
    """Write all files of a network.

    Returns:
        Files, and why there is none, by source, format and precision. What is not offered is in neither.
    """
    files, notes = {}, {}
    for source, writer in WRITERS.items():
        for to in formats:
            for precision in PRECISIONS:
                path = folder / source / to / precision / f"{name}{FORMATS[to].ending}"
                path.parent.mkdir(parents=True)
                try:
                    writer(name, to, precision, path, size)
                except (ValueError, RuntimeError, ImportError) as error:
                    if str(error) != "not offered":
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
    form = next(form for form in FORMATS.values() if path.name.endswith(form.ending))
    parts = [path, *(path.with_suffix(ending) for ending in form.siblings), *path.rglob("*")]
    return sum(part.stat().st_size for part in parts if part.is_file()) / 2**20


def time_files(
    files: dict[tuple[str, str, str], Path], *, threads: int, size: int, rounds: int, seconds: float
) -> dict[tuple[str, str, str], list[float]]:
    """Seconds for an image in each round, by the same keys; all files take turns.

    Raises:
        RuntimeError: If a runtime fails.
    """
    workers = {}
    try:
        for key, path in files.items():
            workers[key] = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _WORKER, str(path), str(threads), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            _answer(workers[key], key, "ready")
        samples: dict[tuple[str, str, str], list[float]] = {key: [] for key in files}
        for number in range(rounds + 1):
            for key, worker in workers.items():
                worker.stdin.write(f"{seconds}\n")
                worker.stdin.flush()
                time = float(_answer(worker, key))
                if number:  # the first one warms up
                    samples[key].append(time)
        return samples
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
            worker.stdout.close()


def _answer(worker: "subprocess.Popen[str]", key: tuple[str, str, str], wanted: str = "") -> str:
    """The next line that says something; runtimes print lines of their own."""
    for line in worker.stdout:
        text = line.strip()
        if text == wanted or (not wanted and text.replace(".", "", 1).replace("e-", "", 1).isdigit()):
            return text
    raise RuntimeError(f"{' '.join(key)} ended with {worker.wait()}")


def measure(
    name: str, *, formats: tuple[str, ...], size: int, threads: tuple[int, ...], rounds: int, seconds: float
) -> list[dict[str, object]]:
    """Rows of one network, one for each source, format, precision and number of threads."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        files, notes = export_all(name, Path(folder), formats=formats, size=size)
        typer.echo(f"{name}: {len(files)} files, {len(notes)} failed", err=True)
        for count in threads:
            torch.set_num_threads(count)
            samples = time_files(files, threads=count, size=size, rounds=rounds, seconds=seconds)
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
                        "note": notes.get(key, ""),
                        **origin("cpu"),
                    }
                )
    return rows


def main(
    network: Annotated[list[str] | None, typer.Option(help="One of our models; repeatable.")] = None,
    formats: Annotated[str, typer.Option(help="Formats, separated by commas.")] = ",".join(RUN_HERE),
    img_size: Annotated[int, typer.Option(min=33, help="Side of the image, in pixels.")] = 256,
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Export, then time."""
    prepare("cpu", 1)
    networks = network or NETWORKS
    wanted = tuple(formats.split(","))
    if unknown := sorted(set(networks) - set(timm.list_models(module="mobilevit_zoo"))):
        raise typer.BadParameter(f"expected models that `timm-mobilevit list` shows, got {', '.join(unknown)}")
    if unknown := sorted(set(wanted) - set(RUN_HERE)):
        raise typer.BadParameter(f"expected formats of {', '.join(RUN_HERE)}, got {', '.join(unknown)}")
    path = out / file_name("exported", "cpu", PRECISIONS)
    rows: list[dict[str, object]] = []
    with progress(len(networks)) as begin:
        for name in networks:
            begin(name)
            rows += measure(
                name,
                formats=wanted,
                size=img_size,
                threads=tuple(int(count) for count in threads.split(",")),
                rounds=rounds,
                seconds=seconds,
            )
            write(rows, path)
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

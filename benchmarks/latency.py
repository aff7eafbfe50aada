"""Milliseconds per image on the CPU, at batch 1, on one thread and on all: ``python -m benchmarks.latency``.

The preset ``models`` times all our models in eager mode, optimized and in ONNX Runtime; ``runtimes`` times some,
and timm's, in everything they run in. Each runtime has a process of its own. On two CPU cores either takes about 10
minutes. Results go to ``benchmarks/results/``, rewritten after every network.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from torch import Tensor, nn

import timm_mobilevit

from ._apart import interleave_apart, processes
from ._device import all_threads, prepare
from ._onnx import export_ours, export_timm, quantize, run
from ._peers import OURS, TIMM, build, build_timm, check_agreement, timm_name
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._steps import compile_network, inference, make_images
from ._timing import Spread, spread

RUNTIMES = ("eager", "optimized", "compiled", "onnxruntime", "onnxruntime int8", "executorch")
_IN_TORCH = ("eager", "optimized", "compiled")
_RUNTIMES = {OURS: RUNTIMES, TIMM: ("eager", "compiled", "onnxruntime")}  # this package makes what the others need

# Networks, runtimes, and whether timm's networks are timed too.
PRESETS = {
    "models": (tuple(timm.list_models(module="mobilevit_zoo")), ("eager", "optimized", "onnxruntime"), False),
    "runtimes": (("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_1_0"), RUNTIMES, True),
}


def measure(
    name: str,
    *,
    runtimes: tuple[str, ...],
    with_timm: bool,
    size: int,
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
) -> list[dict[str, object]]:
    """Time one network in several runtimes, in turns.

    Args:
        name: One of our models.
        runtimes: Some of ``RUNTIMES``.
        with_timm: Whether to time timm's network too, where there is one.
        size: Side of the square image, in pixels.
        threads: Numbers of CPU threads, one after the other.
        rounds: Samples of each.
        seconds: Length of a sample.

    Returns:
        A row for each implementation, runtime and number of threads: milliseconds (median and quartiles over the
        rounds), or a note that says which package is missing.

    Raises:
        ValueError: If the model or a runtime is unknown.
        RuntimeError: If timm's network and ours differ.
    """
    if name not in timm.list_models(module="mobilevit_zoo"):
        raise ValueError(f"expected a model that `timm-mobilevit list` shows, got {name!r}")
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise ValueError(f"expected a runtime of {', '.join(RUNTIMES)}, got {runtime!r}")
    sources = [OURS, TIMM] if with_timm and timm_name(name) else [OURS]
    wanted = [(source, runtime) for source in sources for runtime in runtimes if runtime in _RUNTIMES[source]]
    rows = []
    with tempfile.TemporaryDirectory() as folder, processes(wanted) as executors:
        files, missing = _export(name, wanted, Path(folder), size)
        for count in threads:
            makers = {
                key: partial(_call, name, *key, files.get(key), size, count) for key in wanted if key not in missing
            }
            samples, absent = interleave_apart(executors, makers, rounds=rounds, seconds=seconds)
            notes = {**missing, **absent}
            for key in wanted:
                rows.append(
                    {
                        "network": name,
                        "source": key[0],
                        "runtime": key[1],
                        "size": size,
                        "rounds": rounds,
                        **_milliseconds(spread(samples[key]) if key in samples else None),
                        "note": notes.get(key, ""),
                        **origin("cpu"),
                        "threads": count,
                    }
                )
    return rows


def _build(name: str) -> tuple[nn.Module, nn.Module | None]:
    """Our network and timm's, with the same weights in every process."""
    torch.manual_seed(0)
    ours = build(name)
    return ours, build_timm(ours, name)


def _export(
    name: str, wanted: Sequence[tuple[str, str]], folder: Path, size: int
) -> tuple[dict[tuple[str, str], Path], dict[tuple[str, str], str]]:
    """Write the files that runtimes load, once networks give the same; returns them, and which package is missing."""
    ours, theirs = _build(name)
    if theirs is not None:
        images = make_images(1, size, "nchw", "cpu")
        with torch.inference_mode():
            check_agreement({OURS: ours(images), TIMM: theirs(images)}, 1e-3)
    files: dict[tuple[str, str], Path] = {}
    missing = {}
    for source, runtime in wanted:
        try:
            if runtime == "executorch":
                from timm_mobilevit.export import export_model

                files[source, runtime] = folder / "ours.pte"
                export_model(ours, files[source, runtime], input_size=(3, size, size))
            elif runtime not in _IN_TORCH:
                file = folder / f"{source}.onnx"
                if not file.exists() and source == OURS:
                    export_ours(ours, file, size)
                elif not file.exists():
                    # What timm builds for export has no fused attention, so it does not stand for timm in eager mode.
                    export_timm(build_timm(ours, name, exportable=True), file, size, dynamo=False)
                files[source, runtime] = file
                if runtime == "onnxruntime int8":
                    files[source, runtime] = folder / f"{source}.int8.onnx"
                    quantize(file, files[source, runtime], size)
        except ImportError as error:
            missing[source, runtime] = str(error)
    return files, missing


def _call(name: str, source: str, runtime: str, file: Path | None, size: int, threads: int) -> Callable[[], object]:
    """Make a pass of one image through a network in one runtime, on a number of threads; in a process of its own."""
    prepare("cpu", threads)
    images = make_images(1, size, "nchw", "cpu")
    if file is not None:
        return _executorch(file, images, threads) if runtime == "executorch" else run(file, images, threads)
    ours, theirs = _build(name)
    network = ours if source == OURS else theirs
    assert network is not None
    if runtime != "eager" and source == OURS:
        network = timm_mobilevit.optimize_for_inference(network)
        images = images.contiguous(memory_format=torch.channels_last)
    if runtime == "compiled":
        torch.compiler.reset()
        network = compile_network(network)
    return inference(network, images)


def _executorch(file: Path, images: Tensor, threads: int) -> Callable[[], object]:
    """Return a call of ExecuTorch with XNNPACK."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)  # the only way from Python; safe while no other program of it runs
    method = Runtime.get().load_program(file).load_method("forward")
    return lambda: method.execute([images])


def _milliseconds(times: Spread | None) -> dict[str, str]:
    if times is None:
        return {"ms": "", "ms_q1": "", "ms_q3": ""}
    return {"ms": f"{1e3 * times.median:.2f}", "ms_q1": f"{1e3 * times.q1:.2f}", "ms_q3": f"{1e3 * times.q3:.2f}"}


def main(
    preset: Annotated[str, typer.Option(help=f"{' or '.join(PRESETS)}: what the next two options replace.")] = "models",
    network: Annotated[list[str] | None, typer.Option(help="One of our models; repeatable.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(help=f"{', '.join(RUNTIMES)}; repeatable.")] = None,
    img_size: Annotated[int, typer.Option(min=33, help="Side of the image in pixels.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.2,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure milliseconds per image on the CPU."""
    prepare("cpu", 1)
    if preset not in PRESETS:
        raise typer.BadParameter(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}")
    networks, runtimes, with_timm = PRESETS[preset]
    networks, runtimes = tuple(network or networks), tuple(runtime or runtimes)
    path = out / file_name("latency" if preset == "models" else f"latency-{preset}", "cpu", ["fp32"])
    threads = tuple(dict.fromkeys((1, all_threads())))
    rows: list[dict[str, object]] = []
    with progress(len(networks)) as begin:
        for name in networks:
            begin(name)
            try:
                rows += measure(
                    name,
                    runtimes=runtimes,
                    with_timm=with_timm,
                    size=img_size,
                    threads=threads,
                    rounds=rounds,
                    seconds=seconds,
                )
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            write(rows, path)
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

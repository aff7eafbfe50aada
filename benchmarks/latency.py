"""Milliseconds per image on the CPU, at batch 1, on one thread and on all: ``python -m benchmarks.latency``.

The preset ``models`` times all our models in eager mode, optimized and in ONNX Runtime; ``runtimes`` times some,
and timm's, in everything they run in. On two CPU cores either takes under 10 minutes. Results go to
``benchmarks/results/``, rewritten after every network.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from torch import Tensor, nn

import timm_mobilevit

from ._device import all_threads, prepare
from ._onnx import export_ours, export_timm, quantize, run
from ._peers import OURS, TIMM, build, build_timm, check_agreement
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._steps import compile_network, compiler, inference, make_images
from ._timing import Spread, interleave, spread

RUNTIMES = ("eager", "optimized", "compiled", "onnxruntime", "onnxruntime int8", "executorch")
_IN_TORCH = ("eager", "optimized", "compiled")
_RUNTIMES_OF_TIMM = ("eager", "compiled", "onnxruntime")  # the others are made by this package

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
    ours = build(name)
    networks = {OURS: (ours, ours)}  # to run in torch, and to export
    if with_timm and (builtin := build_timm(ours, name)) is not None:
        # What timm builds for export has no fused attention, so it does not stand for timm in eager mode.
        networks[TIMM] = (builtin, build_timm(ours, name, exportable=True))
    images = make_images(1, size, "nchw", "cpu")
    with torch.inference_mode():
        check_agreement({source: in_torch(images) for source, (in_torch, _) in networks.items()}, 1e-3)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in threads:
            torch.set_num_threads(count)
            calls: dict[tuple[str, str], Callable[[], object]] = {}
            notes: dict[tuple[str, str], str] = {}
            with compiler():
                for source, (in_torch, to_export) in networks.items():
                    for runtime in runtimes:
                        if source == TIMM and runtime not in _RUNTIMES_OF_TIMM:
                            continue
                        network = in_torch if runtime in _IN_TORCH else to_export
                        try:
                            calls[source, runtime] = _call(network, source, runtime, images, Path(folder), count)
                        except ImportError as error:
                            notes[source, runtime] = str(error)
                samples = interleave(calls, rounds=rounds, seconds=seconds)
            for key in (*calls, *notes):
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
                    }
                )
    return rows


def _call(
    network: nn.Module, source: str, runtime: str, images: Tensor, folder: Path, threads: int
) -> Callable[[], object]:
    """A pass of one image through a network in one runtime; what is exported is exported once."""
    size = images.shape[-1]
    if runtime == "eager":
        return inference(network, images)
    if runtime in ("optimized", "compiled"):
        if source == OURS:
            network = timm_mobilevit.optimize_for_inference(network)
            images = images.contiguous(memory_format=torch.channels_last)
        return inference(compile_network(network) if runtime == "compiled" else network, images)
    if runtime == "executorch":
        return _executorch(network, folder / "ours.pte", images, threads)
    file = folder / f"{source}.onnx"
    if not file.exists():
        if source == OURS:
            export_ours(network, file, size)
        else:
            export_timm(network, file, size, dynamo=False)
    if runtime == "onnxruntime int8":
        quantized = folder / f"{source}.int8.onnx"
        if not quantized.exists():
            quantize(file, quantized, size)
        file = quantized
    return run(file, images, threads)


def _executorch(network: nn.Module, file: Path, images: Tensor, threads: int) -> Callable[[], object]:
    """A call of ExecuTorch with XNNPACK."""
    from timm_mobilevit.export import export_executorch

    if not file.exists():
        export_executorch(network, file, input_size=tuple(images.shape[1:]))
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

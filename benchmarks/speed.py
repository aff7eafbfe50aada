"""Time and memory in PyTorch, ours beside timm's and ``transformers``': ``python -m benchmarks.speed``.

Implementations of a network have the same weights. Each, in each memory layout, has a process of its own, and the
processes take turns. The whole takes three quarters of an hour on a CPU. Results go to ``benchmarks/results/`` after
every setting; a row replaces that of the same implementation and setting in the file of the day.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer

from ._apart import interleave_apart, peak_apart, processes
from ._device import default_device, prepare
from ._peers import OPTIMIZED, SCALE, TIMM, TRANSFORMERS, build_source, check_agreement, sources
from ._progress import progress
from ._results import RESULTS, file_name, merge, origin
from ._steps import LAYOUTS, TrainingStep, compile_network, inference, make_images, place
from ._timing import spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_s", "mobilevitv3_1_0")


@dataclass(frozen=True)
class Setting:
    """Conditions under which networks are compared, and the ratios to reach.

    Attributes:
        task: "inference" or "training".
        dtype: "fp32", or "bf16": autocast, but for the optimized form, which computes in bfloat16 itself.
        mode: "eager" or "compiled".
        batch: Images per step.
        aims: How many times as long a peer should take, by its name; each side in its best layout.
    """

    task: str
    dtype: str
    mode: str
    batch: int
    aims: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task}, {self.dtype}{', compiled' if self.mode == 'compiled' else ''}"


# By the kind of device. A ratio is set where a profile says what is possible. For a single image in eager mode, three
# quarters of the time of an optimized network are convolutions, matrix products and attention, which the peers
# compute by the same functions.
SETTINGS = {
    "cpu": (
        Setting("inference", "fp32", "eager", 1, {TIMM: 1.15, TRANSFORMERS: 1.15}),
        Setting("inference", "fp32", "eager", 16, {TIMM: 1.35, TRANSFORMERS: 1.5}),
        Setting("inference", "bf16", "eager", 1, {TIMM: 1.15, TRANSFORMERS: 1.15}),
        Setting("inference", "bf16", "eager", 16, {TIMM: 1.0, TRANSFORMERS: 1.0}),
        Setting("training", "fp32", "eager", 16, {TIMM: 1.1}),
        Setting("training", "bf16", "eager", 16),
        Setting("inference", "fp32", "compiled", 1, {TIMM: 1.0}),
        Setting("inference", "fp32", "compiled", 16, {TIMM: 1.0}),
    ),
    "cuda": (
        Setting("inference", "bf16", "eager", 256, {TIMM: 1.5, TRANSFORMERS: 1.5}),
        Setting("training", "bf16", "eager", 256, {TIMM: 1.3}),
        Setting("inference", "bf16", "compiled", 256, {TIMM: 1.15}),
        Setting("training", "bf16", "compiled", 256, {TIMM: 1.1}),
    ),
}
MEMORY = {"cpu": 1.0, "cuda": 1.25}  # how many times as much memory timm's training should take

# Largest difference between implementations, in standard deviations of the logits. Products are rounded to 8 bits of
# mantissa under bf16, and to 11 under fp32 on GPUs, where convolutions use TF32 by default.
_TOLERANCE = {("cpu", "fp32"): 1e-3, ("cuda", "fp32"): 0.05}
_TOLERANCE_AUTOCAST = 0.7  # two forms in bf16 differ by up to 0.35; images that are exchanged, by several


def measure(
    name: str,
    setting: Setting,
    executors: Mapping[tuple[str, str], ProcessPoolExecutor],
    *,
    device: str,
    size: int,
    rounds: int,
    seconds: float,
) -> list[dict[str, object]]:
    """Measure one network under one setting.

    Args:
        name: One of our models, or one of timm for scale.
        setting: Conditions.
        executors: A process for each implementation and layout, some of which do not exist in training.
        device: "cpu" or "cuda".
        size: Side of the square images, in pixels.
        rounds: Samples of each.
        seconds: Length of a sample.

    Returns:
        A row for each implementation and layout: milliseconds per step (median and quartiles over the rounds) and, for
        training, the peak memory. The note says why there are none.

    Raises:
        RuntimeError: If implementations compute different things.
    """
    training = setting.task == "training"
    there = sources(name, training=training)
    if setting.mode == "compiled":  # the form that is used then, and timm's
        there = [source for source in there if source in (there[0] if training else OPTIMIZED, TIMM)]
    makers = {
        (source, layout): partial(make_step, name, source, layout, setting, device, size, torch.get_num_threads())
        for source, layout in executors
        if source in there and (setting.mode == "eager" or layout == "channels_last")  # a compiler chooses layouts
    }
    times = interleave_apart(executors, makers, rounds=rounds, seconds=seconds, device=device)
    if not training:
        outputs = {", ".join(key): output for key, output in times.outputs.items()}
        check_agreement(outputs, _TOLERANCE.get((device, setting.dtype), _TOLERANCE_AUTOCAST))
    rows: list[dict[str, object]] = []
    for key in makers:
        found = spread([1e3 * sample for sample in times.samples[key]]) if key in times.samples else None
        peak = f"{peak_apart(executors[key], device) / 2**20:.1f}" if training and found else ""
        rows.append(
            {
                "network": name,
                "source": key[0],
                "task": setting.task,
                "dtype": setting.dtype,
                "layout": key[1],
                "mode": setting.mode,
                "batch": setting.batch,
                "size": size,
                "rounds": rounds,
                "ms": f"{found.median:.4g}" if found else "",
                "ms_q1": f"{found.q1:.4g}" if found else "",
                "ms_q3": f"{found.q3:.4g}" if found else "",
                "peak_mib": peak,
                "note": times.missing.get(key, ""),
                **origin(device),
            }
        )
    return rows


def make_step(
    name: str, source: str, layout: str, setting: Setting, device: str, size: int, threads: int
) -> Callable[[], Any]:
    """Build an implementation in its process, and return its step."""
    prepare(device, threads)
    training = setting.task == "training"
    network = place(build_source(name, source, training=training, dtype=setting.dtype), layout, device)
    torch.manual_seed(0)
    images = make_images(setting.batch, size, layout, device)
    forward = compile_network(network) if setting.mode == "compiled" else network
    if training:
        return TrainingStep(forward, images, setting.dtype)
    return inference(forward, images, "fp32" if source == OPTIMIZED else setting.dtype)


def main(
    network: Annotated[list[str] | None, typer.Option(help="Ours, or timm's for scale; repeatable.")] = None,
    only: Annotated[
        str, typer.Option(help="Start of the settings to measure, such as training or inference, bf16.")
    ] = "",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of that of the setting.")] = None,
    img_size: Annotated[int, typer.Option(min=33, help="Side of the square images, in pixels.")] = 256,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = default_device(),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure time and memory in PyTorch."""
    try:
        prepare(device, threads)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    networks = network or [*NETWORKS, *SCALE]
    if unknown := [name for name in networks if not timm.is_model(name)]:
        raise typer.BadParameter(f"expected models of this package or of timm, got {', '.join(unknown)}")
    settings = [setting for setting in SETTINGS[device] if str(setting).startswith(only)]
    if not settings:
        known = dict.fromkeys(map(str, SETTINGS[device]))
        raise typer.BadParameter(f"expected the start of {'; '.join(known)}; got {only!r}", param_hint="--only")
    path = out / file_name("speed", device)
    options = {"device": device, "size": img_size, "rounds": rounds, "seconds": seconds}
    columns = ("network", "source", "task", "dtype", "layout", "mode", "batch", "size")
    count = 0
    with progress(len(networks) * len(settings)) as begin:
        for name in networks:
            layouts = LAYOUTS if device == "cpu" else ("channels_last",)
            with processes((source, layout) for source in sources(name) for layout in layouts) as executors:
                for setting in settings:
                    begin(f"{name}: {setting}")
                    if name in SCALE and (setting.task, setting.mode) != ("inference", "eager"):
                        continue
                    count = merge(measure(name, _with_batch(setting, batch_size), executors, **options), path, columns)
    typer.echo(f"{path}: {count} rows")


def _with_batch(setting: Setting, batch: int | None) -> Setting:
    return Setting(setting.task, setting.dtype, setting.mode, batch or setting.batch)


if __name__ == "__main__":
    typer.run(main)

"""Images per second and peak memory, ours against others: ``python -m benchmarks.throughput --preset cpu``.

All networks of a setting are timed in turns in one process; implementations of the same network have the same weights.
Results go to ``benchmarks/results/``, rewritten after every setting. On a CPU the preset ``cpu`` takes a
quarter of an hour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from torch import Tensor

from ._device import default_device, prepare
from ._memory import peak_extra_bytes, resident_bytes
from ._operators import record
from ._peers import OPTIMIZED, OURS, SCALE, TIMM, TRANSFORMERS, build_family, build_scale, check_agreement
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._roofline import Rates, least_seconds, measure_rates
from ._steps import DTYPES, LAYOUTS, TrainingStep, compile_network, compiler, inference, make_images, place
from ._timing import interleave, ratios, spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_s", "mobilevitv3_1_0")
_PAIRS = ("mobilevitv1_s", "mobilevitv2_1_0")  # those that timm has as well


@dataclass(frozen=True)
class Setting:
    """Conditions under which networks are compared.

    Attributes:
        task: "inference" or "training".
        dtype: "fp32", or "bf16" or "fp16" for autocast.
        layout: "nchw" or "channels_last", of images and weights.
        mode: "eager" or "compiled".
        batch: Images per step.
        size: Side of the square images, in pixels.
        networks: Our models to compare, each with its other implementations, and networks of timm for scale.
    """

    task: str = "inference"
    dtype: str = "fp32"
    layout: str = "channels_last"
    mode: str = "eager"
    batch: int = 1
    size: int = 256
    networks: tuple[str, ...] = (*NETWORKS, *SCALE)

    def __post_init__(self) -> None:
        """Check the words.

        Raises:
            ValueError: If one is unknown.
        """
        for value, known in (
            (self.task, ("inference", "training")),
            (self.dtype, DTYPES),
            (self.layout, LAYOUTS),
            (self.mode, ("eager", "compiled")),
        ):
            if value not in known:
                raise ValueError(f"expected one of {', '.join(known)}, got {value!r}")
        for name in self.networks:
            if not timm.is_model(name):
                raise ValueError(f"expected a model of this package or of timm, got {name!r}")

    def __str__(self) -> str:
        return f"{self.task} {self.dtype} {self.layout} {self.mode}, batch {self.batch}, {self.size}²"


def grid(**axes: tuple[Any, ...]) -> list[Setting]:
    """Return all combinations of values.

    Example:
        >>> [str(setting) for setting in grid(batch=(1, 16), size=(224,))]
        ['inference fp32 channels_last eager, batch 1, 224²', 'inference fp32 channels_last eager, batch 16, 224²']
    """
    return [Setting(**dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


# The most important ones first: a run that is cut short leaves their results.
PRESETS = {
    "cpu": [
        *grid(batch=(1, 16), layout=("channels_last", "nchw")),
        *grid(task=("training",), batch=(8,), layout=("channels_last", "nchw"), networks=(_PAIRS,)),
        *grid(size=(128, 192, 320, 384, 512)),
        *grid(batch=(4,)),
    ],
    "cpu-autocast": grid(dtype=("bf16",), task=("inference", "training"), batch=(8,), networks=(_PAIRS,)),
    "cpu-compiled": grid(mode=("compiled",), batch=(1, 16), networks=(_PAIRS,)),
    "cuda": [
        *grid(task=("inference", "training"), dtype=("bf16",), batch=(256,)),
        *grid(task=("inference", "training"), dtype=("bf16",), layout=("nchw",), batch=(256,), networks=(_PAIRS,)),
        *grid(dtype=("fp16", "fp32"), batch=(256,), networks=(_PAIRS,)),
        *grid(dtype=("bf16",), batch=(64, 16, 1)),
        *grid(dtype=("bf16",), batch=(64,), size=(128, 192, 384, 512)),
    ],
    "cuda-compiled": grid(
        mode=("compiled",), task=("inference", "training"), dtype=("bf16",), batch=(256,), networks=(_PAIRS,)
    ),
}


def bench_name(preset: str) -> str:
    """Return what the results of a preset are filed under.

    Example:
        >>> bench_name("cpu"), bench_name("cuda-compiled")
        ('throughput', 'throughput-compiled')
    """
    _, dash, kind = preset.partition("-")
    return f"throughput{dash}{kind}"


# Largest difference between implementations, in standard deviations of the logits. Products are rounded to 8 bits of
# mantissa under bf16, to 11 under fp16, and to 11 under fp32 on GPUs, where convolutions use TF32 by default.
_TOLERANCE = {("cpu", "fp32"): 1e-3, ("cuda", "fp32"): 0.05}
_TOLERANCE_AUTOCAST = 0.3


def measure(setting: Setting, *, device: str, rates: Rates, rounds: int, seconds: float) -> list[dict[str, object]]:
    """Measure one setting.

    Args:
        setting: Conditions.
        device: "cpu" or "cuda".
        rates: The device's measured ceilings for the setting's type.
        rounds: Samples of each network.
        seconds: Length of a sample.

    Returns:
        A row for each network and implementation: images per second (median and quartiles over the rounds), how many
        times faster than this ours is (likewise; for implementations of the same network), peak memory, GFLOP and GB
        of a step, the share of the measured matmul rate and, for eager networks, of the roofline.

    Raises:
        RuntimeError: If implementations of the same network compute different things.
        torch.OutOfMemoryError: If the device's memory does not suffice.
    """
    is_training = setting.task == "training"
    images = make_images(setting.batch, setting.size, setting.layout, device)
    networks = {
        (name, source): place(network, setting.layout, device)
        for name in setting.networks
        for source, network in _build(name, training=is_training, dtype=setting.dtype).items()
    }
    with compiler():
        steps = {}
        for key, network in networks.items():
            callable_network = compile_network(network) if setting.mode == "compiled" else network
            make_step = TrainingStep if is_training else inference
            steps[key] = make_step(callable_network, images, setting.dtype)
        if not is_training:
            _check(steps, setting, device)
        samples = interleave(steps, rounds=rounds, seconds=seconds, device=device)
        peaks = {key: peak_extra_bytes(step, device) for key, step in steps.items()}
    rows = []
    for key, network in networks.items():
        name, source = key
        times = spread(samples[key])
        ours = samples.get((name, OURS if is_training else OPTIMIZED))
        gain = spread(ratios(samples[key], ours)) if ours and source in (TIMM, TRANSFORMERS) else None
        if is_training:
            counted = TrainingStep(network, images, setting.dtype)
            resident = resident_bytes(network, images, steps[key].optimizer)
        else:
            counted = inference(network, images, setting.dtype, torch.no_grad)
            resident = resident_bytes(network, images)
        operators = record(counted)
        flops = sum(operator.flops for operator in operators)
        eager = setting.mode == "eager"
        rows.append(
            {
                "network": name,
                "source": source,
                "task": setting.task,
                "dtype": setting.dtype,
                "layout": setting.layout,
                "mode": setting.mode,
                "batch": setting.batch,
                "size": setting.size,
                "rounds": rounds,
                "images_per_s": f"{setting.batch / times.median:.2f}",
                "images_per_s_q1": f"{setting.batch / times.q3:.2f}",
                "images_per_s_q3": f"{setting.batch / times.q1:.2f}",
                "ours_faster": f"{gain.median:.3f}" if gain else "",
                "ours_faster_q1": f"{gain.q1:.3f}" if gain else "",
                "ours_faster_q3": f"{gain.q3:.3f}" if gain else "",
                "peak_mib": f"{(resident + peaks[key]) / 2**20:.1f}",
                "gflop": f"{flops / 1e9:.4g}",
                "gbyte": f"{sum(operator.bytes for operator in operators) / 1e9:.4g}",
                "matmul_tflops": f"{rates.flops / 1e12:.4g}",
                "copy_gbyte_per_s": f"{rates.bytes / 1e9:.4g}",
                "matmul_share": f"{flops / rates.flops / times.median:.3f}",
                "roofline_share": f"{least_seconds(operators, rates) / times.median:.3f}" if eager else "",
                **origin(device),
            }
        )
    return rows


def _build(name: str, *, training: bool, dtype: str) -> dict[str, torch.nn.Module]:
    """Implementations of one of our networks, or a network for scale."""
    if name in timm.list_models(module="mobilevit_zoo"):
        return build_family(name, training=training, dtype=dtype)
    return {TIMM: build_scale(name, training=training)}


def _check(steps: dict[tuple[str, str], Callable[[], Tensor]], setting: Setting, device: str) -> None:
    """Compare what implementations of the same network give on this device, in this type."""
    for name in setting.networks:
        outputs = {source: step() for (network, source), step in steps.items() if network == name}
        check_agreement(outputs, _TOLERANCE.get((device, setting.dtype), _TOLERANCE_AUTOCAST))


def main(
    preset: Annotated[str | None, typer.Option(help=f"{', '.join(PRESETS)}: instead of the options below.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Ours, or timm's for scale; repeatable.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="inference (default) or training; repeatable.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32 (default); bf16, fp16: autocast; repeatable.")] = None,
    layout: Annotated[list[str] | None, typer.Option(help="channels_last (default) or nchw; repeatable.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="eager (default) or compiled; repeatable.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="1 by default; repeatable.")] = None,
    img_size: Annotated[list[int] | None, typer.Option(min=33, help="Side, 256 by default; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = default_device(),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each network.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.2,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure images per second and peak memory."""
    axes = {"task": task, "dtype": dtype, "layout": layout, "mode": mode, "batch": batch_size, "size": img_size}
    try:
        prepare(device, threads)
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}")
        given: dict[str, tuple[Any, ...]] = {axis: tuple(values) for axis, values in axes.items() if values}
        settings = PRESETS[preset] if preset else grid(**given, networks=(tuple(network or _PAIRS),))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    compiled = all(setting.mode == "compiled" for setting in settings)
    bench = bench_name(preset or (f"{device}-compiled" if compiled else device))
    path = out / file_name(bench, device, [setting.dtype for setting in settings])
    rows: list[dict[str, object]] = []
    with progress(len(settings)) as begin:
        rates = {kind: measure_rates(device, kind) for kind in dict.fromkeys(setting.dtype for setting in settings)}
        for setting in settings:
            begin(str(setting))
            try:
                rows += measure(setting, device=device, rates=rates[setting.dtype], rounds=rounds, seconds=seconds)
            except torch.OutOfMemoryError:
                typer.echo(f"left out, the memory does not suffice: {setting}", err=True)
                continue
            write(rows, path)
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

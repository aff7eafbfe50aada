"""All that only a GPU can show, in one command: ``python -m benchmarks.gpu``, or ``make gpu``.

It runs from the source tree, on a machine that has torch, timm and transformers, without network and without installing
anything, and begins nothing after eight minutes. In this order:

1. checks: the golden numbers of all models in float32; the gradients of the joint training step of batch norm and SiLU,
   which on GPUs is off, against those of the plain modules; 50 steps of training without a NaN;
2. forms: compiled forward and backward passes, the optimized copy and CUDA graphs, for equality and at batch 1;
3. speed (``benchmarks.speed``) against timm and transformers.

Each row is written as soon as it is there: 1 and 2 to ``gpu_….csv``, 3 to ``speed_….csv``. ``make tables`` puts them
into the documents. ``--device cpu --quick`` tries all of it on small images.
"""

import contextlib
import copy
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from timm_mobilevit import optimize_for_inference
from timm_mobilevit.convert import convert_state_dict
from timm_mobilevit.network import norm_act

from . import speed
from ._apart import processes
from ._device import default_device, prepare
from ._peers import build, build_timm
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._steps import DTYPES, LAYOUTS, compile_network, compiler, inference, make_images, place
from ._timing import interleave, ratios, spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_1_0")
STEPS = 50  # of training
_CHECKS, _FORMS = "checks", "forms"
_LEFT_OUT = "not begun: the time was over"


@dataclass(frozen=True)
class Scale:
    """How large everything is: what ``--quick`` changes.

    Attributes:
        networks: Those of the checks of training, and of the forms.
        small: Batch and side of the images where gradients are compared.
        large: Batch and side of the images where speed is compared.
        rounds: Samples of each time.
        seconds: Length of a sample.
        dtypes: Types of autocast in training.
    """

    networks: tuple[str, ...] = NETWORKS
    small: tuple[int, int] = (16, 128)
    large: tuple[int, int] = (256, 256)
    rounds: int = 5
    seconds: float = 0.3
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")


QUICK = Scale(("mobilevitv3_xxs",), (2, 64), (2, 64), 1, 0.0, ("fp32", "bf16"))


@dataclass(frozen=True)
class Figure:
    """What a case found: a figure, the most that it may be, and the ratio to timm's network where that is the point."""

    value: float
    unit: str
    most: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Case:
    """A row to measure."""

    step: str
    network: str
    what: str
    measure: Callable[[], Figure]


# ------------------------------------------------------------------------------------------------------------- checks


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Compute in float32 as a CPU does: without TF32."""
    matmul, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolutions


def _golden_data() -> ModuleType:
    """Load the module of the tests that reads the golden numbers, by its path: another package may be called tests."""
    file = Path(__file__).parents[1] / "tests" / "golden_data.py"
    spec = importlib.util.spec_from_file_location("golden_data", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name: str, device: str, layout: str) -> Figure:
    """Compare the logits and the maps of all stages with those of the reference, which were recorded on a CPU."""
    data = _golden_data()
    recorded = data.load(f"{name}_256x256")
    network = timm.create_model(name).eval()
    network.load_state_dict(convert_state_dict(data.reference_weights(name), name, "cvnets", "rgb"))
    network = place(network, layout, device)
    images = data.make_images(recorded["input_shape"]).to(device, memory_format=LAYOUTS[layout])
    with torch.inference_mode(), _float32():
        last, stages = network.forward_intermediates(images)
        logits = network.forward_head(last).double().cpu()
    errors = [data.error(stage.cpu(), recorded["features"][f"layer_{i + 1}"]) for i, stage in enumerate(stages)]
    for image, first, std in zip(logits, recorded["logits"]["first8"], recorded["logits"]["std"], strict=True):
        errors.append(float((image[:8] - torch.tensor(first, dtype=torch.float64)).abs().max() / std))
    return Figure(max(errors), "std", most=1e-4)


def _gradients(network: nn.Module, images: Tensor, dtype: str, *, joint: bool) -> Tensor:
    """Return the gradients of a training step, one after the other, in float64."""
    network = copy.deepcopy(network).train()
    scaler = torch.amp.GradScaler(images.device.type, enabled=dtype == "fp16")
    with patch.object(norm_act, "_DEVICES", (images.device.type,) if joint else ()), _float32():
        loss = _loss(network, images, dtype)
        scaler.scale(loss).backward()
    scale = scaler.get_scale() if scaler.is_enabled() else 1.0
    return torch.cat([parameter.grad.double().flatten() / scale for parameter in network.parameters()])


def _loss(network: nn.Module, images: Tensor, dtype: str) -> Tensor:
    labels = torch.arange(len(images), device=images.device) % 1000
    kind = torch.bfloat16 if dtype == "fp32" else DTYPES[dtype]
    with torch.autocast(images.device.type, dtype=kind, enabled=dtype != "fp32"):
        return F.cross_entropy(network(images), labels)


def gradients(name: str, device: str, layout: str, dtype: str, scale: Scale) -> Figure:
    """Measure how far the joint step's gradients are from float64's, in units of how far the plain modules' are."""
    network = place(build(name), layout, device)
    images = make_images(*scale.small, layout, device)
    exact = _gradients(network.double(), images.double(), "fp32", joint=False)
    network = network.float()
    joint, plain = (
        float((_gradients(network, images, dtype, joint=which) - exact).norm() / exact.norm())
        for which in (True, False)
    )
    return Figure(joint / plain, "times the plain modules' error", most=2.0)


def training(name: str, device: str, dtype: str, scale: Scale, *, joint: bool) -> Figure:
    """Train on the same images for some steps, and return the last loss over the first; NaN where there was one."""
    network = place(build(name), "channels_last", device).train()
    images = make_images(*scale.small, "channels_last", device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(device, enabled=dtype == "fp16")
    losses = []
    with patch.object(norm_act, "_DEVICES", (device,) if joint else ()):
        for _ in range(STEPS):
            loss = _loss(network, images, dtype)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
    return Figure(
        losses[-1] / losses[0] if all(map(math.isfinite, losses)) else math.nan, "of the first loss", most=1.0
    )


# -------------------------------------------------------------------------------------------------------------- forms


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max() / expected.double().std())


def compiled_gradients(name: str, device: str, scale: Scale) -> Figure:
    """Compare the gradients of the compiled network with the eager ones, in float32."""
    network = place(build(name), "channels_last", device).train()
    images = make_images(*scale.small, "channels_last", device)
    found = []
    with compiler(), _float32():
        for forward in (compile_network(copy.deepcopy(network)), copy.deepcopy(network)):
            _loss(forward, images, "fp32").backward()
            found.append(torch.cat([parameter.grad.flatten() for parameter in forward.parameters()]))
    compiled, eager = found
    return Figure(float((compiled - eager).norm() / eager.norm()), "of the gradients' norm", most=1e-3)


# What runs one image, by its name; each makes a callable out of our network or of timm's.
FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "eager": lambda network: network,
    "optimized": optimize_for_inference,
    "compiled": lambda network: compile_network(optimize_for_inference(network)),
    "CUDA graphs": lambda network: torch.compile(
        optimize_for_inference(network), mode="reduce-overhead", dynamic=False
    ),
}


def form_error(name: str, form: str, device: str, scale: Scale) -> Figure:
    """Compare a form with the eager network, in float32."""
    network = place(build(name), "channels_last", device)
    images = make_images(1, scale.large[1], "channels_last", device)
    with compiler(), _float32():
        expected = inference(network, images)()
        actual = inference(FORMS[form](network), images)().clone()
    return Figure(_error(actual, expected), "std", most=1e-3)


def form_speed(name: str, form: str, device: str, scale: Scale) -> Figure:
    """Time one image in a form, under bf16 autocast on a GPU, beside timm's eager network where there is one."""
    dtype = "bf16" if device == "cuda" else "fp32"
    ours = build(name)
    theirs = build_timm(ours, name)
    images = make_images(1, scale.large[1], "channels_last", device)
    with compiler():
        calls = {"ours": inference(FORMS[form](place(ours, "channels_last", device)), images, dtype)}
        if theirs is not None:
            calls["timm"] = inference(place(theirs, "channels_last", device), images, dtype)
        samples = interleave(calls, rounds=scale.rounds, seconds=scale.seconds, device=device)
    ratio = spread(ratios(samples["timm"], samples["ours"])).median if theirs is not None else None
    return Figure(1e3 * spread(samples["ours"]).median, "ms", ratio=ratio)


def cases(device: str, scale: Scale) -> Iterator[Case]:
    """Give the cases of the first two parts, the most important ones first."""
    for name in timm.list_models(module="mobilevit_zoo"):
        yield Case(_CHECKS, name, "golden numbers", partial(golden, name, device, "nchw"))
    for name in scale.networks:
        yield Case(_CHECKS, name, "golden numbers, channels_last", partial(golden, name, device, "channels_last"))
    for dtype in scale.dtypes:
        for name in scale.networks:
            for layout in LAYOUTS:
                what = f"gradients of the joint step, {dtype}, {layout}"
                yield Case(_CHECKS, name, what, partial(gradients, name, device, layout, dtype, scale))
            for joint in (False, True):
                what = f"{STEPS} steps of training, {dtype}{', joint step' if joint else ''}"
                yield Case(_CHECKS, name, what, partial(training, name, device, dtype, scale, joint=joint))
    for name in scale.networks:
        for form in list(FORMS)[1:]:
            yield Case(_FORMS, name, f"{form}, float32", partial(form_error, name, form, device, scale))
        for form in FORMS:
            yield Case(_FORMS, name, f"{form}, one image", partial(form_speed, name, form, device, scale))
        yield Case(_FORMS, name, "compiled gradients", partial(compiled_gradients, name, device, scale))


def measure(case: Case, device: str, *, in_time: bool = True) -> dict[str, object]:
    """Return a row; a case that fails says why, and does not keep the others from running."""
    figure, note = None, "" if in_time else _LEFT_OUT
    if in_time:
        try:
            figure = case.measure()
        except Exception as error:  # of torch, of a compiler, of a driver
            note = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    most = figure.most if figure else None
    passed = "" if figure is None or most is None else "yes" if figure.value <= most else "no"  # NaN: no
    return {
        "step": case.step,
        "network": case.network,
        "what": case.what,
        "value": f"{figure.value:.3g}" if figure else "",
        "unit": figure.unit if figure else "",
        "most": "" if most is None else f"{most:g}",
        "passed": "no" if note.startswith("failed") else passed,
        "timm_over_ours": f"{figure.ratio:.3f}" if figure and figure.ratio is not None else "",
        "note": note,
        **origin(device),
    }


def run(device: str, scale: Scale, out: Path, minutes: float, begin: Callable[[str], None]) -> Sequence[Path]:
    """Do it all, writing each row as soon as it is there.

    Args:
        device: "cuda", or "cpu" to try it out.
        scale: How large everything is.
        out: Folder for the CSV files.
        minutes: After which nothing is begun any more.
        begin: Told what is measured next.

    Returns:
        The files.
    """
    end = time.monotonic() + 60 * minutes
    checks, times = (out / file_name(bench, device) for bench in ("gpu", "speed"))
    rows: list[dict[str, object]] = []
    for case in cases(device, scale):
        begin(f"{case.what}: {case.network}")
        rows.append(measure(case, device, in_time=time.monotonic() < end))
        write(rows, checks)
    rows = []
    batch, size = scale.large
    for name in scale.networks:
        with processes((source, "channels_last") for source in speed.sources(name)) as executors:
            for setting in speed.SETTINGS["cuda"]:
                if time.monotonic() < end:
                    begin(f"{name}: {setting}")
                    rows += speed.measure(
                        name,
                        replace(setting, batch=batch),
                        executors,
                        device=device,
                        size=size,
                        rounds=scale.rounds,
                        seconds=scale.seconds,
                    )
                    write(rows, times)
    return [file for file in (checks, times) if file.exists()]


def main(
    device: Annotated[str, typer.Option(help="cuda; or cpu, to try it out.")] = default_device(),
    quick: Annotated[bool, typer.Option(help="Small images, one network, single samples.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="After which nothing is begun any more.")] = 8,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for the CSV files.")] = None,
) -> None:
    """Check and measure everything on a GPU."""
    try:
        prepare(device, threads=1)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    scale = QUICK if quick else Scale()
    total = len(list(cases(device, scale))) + len(scale.networks) * len(speed.SETTINGS["cuda"])
    with progress(total) as begin:
        # What is tried out on a CPU is none of the results.
        files = run(device, scale, out or (RESULTS if device == "cuda" else Path("build/gpu")), minutes, begin)
    for file in files:
        typer.echo(file)


if __name__ == "__main__":
    typer.run(main)

"""What each optimization is worth alone: ``python -m benchmarks.ablation``.

Each row times one network with one optimization and without it, in turns in one process; the ratio says how many times
longer it takes without. An optimization stays in the code if that is at least 1.05 in one of these rows. On two CPU
cores it takes about 15 minutes. Results go to ``benchmarks/results/``.
"""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import timm
import typer
from torch import nn

from timm_mobilevit import optimize_for_inference
from timm_mobilevit.inference import optimize
from timm_mobilevit.network import norm_act

from ._device import prepare
from ._peers import build
from ._progress import progress
from ._results import RESULTS, file_name, origin, write
from ._steps import TrainingStep, inference, make_images, place
from ._timing import interleave, ratios, spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0")
WORTH = 1.05  # of the time without it


def _identity(module: nn.Module) -> nn.Module:
    return module


# What replaces an optimization of the copy for inference, by the name of the class that it is.
INFERENCE: dict[str, Callable[[], Any]] = {
    "ImageWise": lambda: patch.object(optimize, "ImageWise", _identity),
    "JoinedStages": lambda: patch.object(optimize, "JoinedStages", _identity),
}
# What replaces one of a training step, by the name of the function that decides on it.
TRAINING: dict[str, Callable[[], Any]] = {
    "gradients in place": lambda: patch.object(norm_act, "_pays_in_place", lambda x, weight: False),
    "norm and SiLU in one step": lambda: patch.object(norm_act, "_can_join", lambda norm, x: False),
}


def measure(
    name: str, what: str, batch: int, threads: int, *, size: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Return a row: milliseconds with and without one optimization, and their ratio with quartiles over the rounds."""
    prepare("cpu", threads)
    images = make_images(batch, size, "channels_last", "cpu")
    network = place(build(name), "channels_last", "cpu")
    calls: dict[str, Callable[[], object]] = {}
    if what in INFERENCE:
        calls["with"] = inference(optimize_for_inference(network), images)
        with INFERENCE[what]():
            calls["without"] = inference(optimize_for_inference(network), images)
    else:
        step = TrainingStep(network.train(), images)

        def without() -> object:
            with TRAINING[what]():
                return step()

        calls |= {"with": step, "without": without}
    samples = interleave(calls, rounds=rounds, seconds=seconds)
    ratio = spread(ratios(samples["without"], samples["with"]))
    return {
        "optimization": what,
        "network": name,
        "mode": "inference" if what in INFERENCE else "training",
        "batch": batch,
        "threads": threads,
        "size": size,
        "rounds": rounds,
        "ms_with": f"{1e3 * spread(samples['with']).median:.2f}",
        "ms_without": f"{1e3 * spread(samples['without']).median:.2f}",
        "ratio": f"{ratio.median:.3f}",
        "ratio_q1": f"{ratio.q1:.3f}",
        "ratio_q3": f"{ratio.q3:.3f}",
        **origin("cpu"),
    }


def main(
    optimization: Annotated[list[str] | None, typer.Option(help="One of them; repeatable.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="One of our models; repeatable.")] = None,
    img_size: Annotated[int, typer.Option(min=33, help="Side of the square image, in pixels.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 11,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure each optimization alone."""
    known = (*INFERENCE, *TRAINING)
    wanted = optimization or known
    if unknown := sorted(set(wanted) - set(known)):
        raise typer.BadParameter(f"expected optimizations among {', '.join(known)}, got {', '.join(unknown)}")
    ours = timm.list_models(module="mobilevit_zoo")
    if unknown := [name for name in network or () if name not in ours]:
        raise typer.BadParameter(f"expected models that `timm-mobilevit list` shows, got {', '.join(unknown)}")
    cases = [
        (name, what, batch, threads)
        for what in wanted
        for name in network or NETWORKS
        for batch in ((16,) if what in TRAINING or what == "ImageWise" else (1, 16))
        for threads in (1, 2)
    ]
    path = out / file_name("ablation", "cpu")
    rows = []
    with progress(len(cases)) as begin:
        for case in cases:
            begin(" ".join(map(str, case)))
            # What ran before in a process decides how much memory the allocator keeps at hand: a new one for each row.
            with get_context("spawn").Pool(1) as pool:
                options = {"size": img_size, "rounds": rounds, "seconds": seconds}
                rows.append(pool.apply(measure, case, options))
            write(rows, path)
    for what in wanted:
        best = max(float(row["ratio"]) for row in rows if row["optimization"] == what)
        typer.echo(f"{what}: at most {best} times faster: {'stays' if best >= WORTH else 'goes'}")
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

"""Whether the speed that this project aims at is reached: ``python -m benchmarks.targets``.

A row per aim: ours against a peer with the same weights, timed in turns in one process. Each ratio says how many times
longer the peer takes, memory and nodes how many times as much it needs: above 1, ours is better. All is done on one
CPU thread; with ``--device cuda`` the aims for a GPU are measured. On a CPU it takes 20 to 30 minutes.

Each comparison has a process of its own. What ran before would decide otherwise how much memory the allocator keeps at
hand, and so how much of each step is spent on getting it from the system. In eager inference that also differs from
process to process, by up to a fifth of the time, so the rounds are spread over several.
"""

import copy
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ._device import default_device, prepare
from ._memory import peak_extra_bytes, resident_bytes
from ._onnx import count_nodes, export_ours, export_timm, quantize, run
from ._peers import OPTIMIZED, OURS, TIMM, TRANSFORMERS, build, build_family, build_timm, check_agreement
from ._progress import progress
from ._results import RESULTS, file_name, origin, read, write
from ._steps import TrainingStep, compile_network, compiler, inference, make_images, place
from ._timing import interleave, ratios, spread

INFERENCE = "inference, eager"
DEFAULT_LAYOUT = "inference, eager, peer in its default layout"
COMPILED = "inference, both compiled"
TRAINING = "training, eager"
MEMORY = "peak training memory"
COMPILED_TRAINING = "training, both compiled"
ONNX = "ONNX Runtime"
NODES = "nodes in ONNX"
INT8 = "ONNX Runtime int8"
FP32 = "ours, fp32"


@dataclass(frozen=True)
class Target:
    """One aim.

    Attributes:
        device: "cpu" (one thread, fp32, best layout of each) or "cuda" (bf16 autocast, channels_last).
        what: What is compared.
        network: Our model.
        batch: Images per step.
        peer: What it is compared with.
        ratio: The ratio to reach.
    """

    device: str
    what: str
    network: str
    batch: int
    peer: str
    ratio: float


_NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0")

TARGETS = (
    *(
        Target("cpu", what, network, batch, peer, ratio)
        for what, peer, goals in (
            (INFERENCE, TIMM, {1: 1.15, 16: 1.35}),
            (DEFAULT_LAYOUT, TIMM, {1: 1.3, 16: 2.0}),
            (COMPILED, TIMM, {1: 1.0, 16: 1.0}),
            (TRAINING, TIMM, {16: 1.15}),
            (MEMORY, TIMM, {16: 1.0}),
            (ONNX, TIMM, {1: 1.0}),
            (NODES, TIMM, {1: 1.0}),
        )
        for network in _NETWORKS
        for batch, ratio in goals.items()
    ),
    Target("cpu", INT8, "mobilevitv2_1_0", 1, FP32, 1.6),
    *(
        Target("cpu", what, network, batch, TRANSFORMERS, 1.5)
        for what in (DEFAULT_LAYOUT, INFERENCE)
        for network in _NETWORKS
        for batch in (1, 16)
    ),
    *(
        Target("cuda", what, network, 256, peer, ratio)
        for what, peer, ratio in (
            (INFERENCE, TIMM, 1.5),
            (COMPILED, TIMM, 1.15),
            (TRAINING, TIMM, 1.3),
            (COMPILED_TRAINING, TIMM, 1.1),
            (MEMORY, TIMM, 1 / 0.8),  # 0.8 of the peer's
            (INFERENCE, TRANSFORMERS, 1.5),
        )
        for network in _NETWORKS
    ),
)


@dataclass(frozen=True)
class Comparison:
    """What was measured for a target.

    Attributes:
        ours: Median of ours.
        peer: Median of the peer.
        unit: Their unit.
        ratios: The peer's figure over ours, round by round.
        detail: Which of several forms of each was taken.
    """

    ours: float
    peer: float
    unit: str
    ratios: Sequence[float]
    detail: str


@dataclass(frozen=True)
class Conditions:
    """How to measure: the device, the side of the square images in pixels, the rounds, and the length of a sample."""

    device: str
    size: int = 256
    rounds: int = 5
    seconds: float = 0.3

    @property
    def dtype(self) -> str:
        """The type that the targets are set for."""
        return "fp32" if self.device == "cpu" else "bf16"

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts of which each side takes its best."""
        return ("nchw", "channels_last") if self.device == "cpu" else ("channels_last",)

    def images(self, batch: int, layout: str) -> Tensor:
        """Random images in the layout."""
        return make_images(batch, self.size, layout, self.device)

    def time(self, calls: dict[tuple[str, str], Callable[[], object]]) -> dict[tuple[str, str], list[float]]:
        """Seconds of each call, a sample per round, in turns."""
        return interleave(calls, rounds=self.rounds, seconds=self.seconds, device=self.device)


Found = dict[tuple[str, str], Comparison]


def _compare(samples: dict[tuple[str, str], list[float]], ours: str, peer: str, layouts: Iterable[str]) -> Comparison:
    """Ours against a peer: of ours the fastest form, of the peer the fastest of the given."""
    mine = min((key for key in samples if key[0] == ours), key=lambda key: spread(samples[key]).median)
    theirs = min(((peer, layout) for layout in layouts), key=lambda key: spread(samples[key]).median)
    return Comparison(
        1e3 * spread(samples[mine]).median,
        1e3 * spread(samples[theirs]).median,
        "ms",
        ratios(samples[theirs], samples[mine]),
        " / ".join(", ".join(filter(None, key)) for key in (mine, theirs)),
    )


def _inference(network: str, batch: int, conditions: Conditions) -> Found:
    family = build_family(network)
    del family[OURS]  # the optimized form stands for ours
    calls = {}
    for layout in conditions.layouts:
        images = conditions.images(batch, layout)
        for source, module in family.items():
            placed = place(copy.deepcopy(module), layout, conditions.device)
            calls[source, layout] = inference(placed, images, conditions.dtype)
    samples = conditions.time(calls)
    found = {}
    for peer in (TIMM, TRANSFORMERS):
        if peer in family:
            found[INFERENCE, peer] = _compare(samples, OPTIMIZED, peer, conditions.layouts)
            if "nchw" in conditions.layouts:
                found[DEFAULT_LAYOUT, peer] = _compare(samples, OPTIMIZED, peer, ["nchw"])
    return found


def _compiled(network: str, batch: int, conditions: Conditions) -> Found:
    # Both in one layout: on the CPU the compiler chooses that of every operator itself.
    layout = conditions.layouts[-1]
    images = conditions.images(batch, layout)
    family = build_family(network)
    with compiler():
        calls = {
            (source, layout): inference(
                compile_network(place(family[source], layout, conditions.device)), images, conditions.dtype
            )
            for source in (OPTIMIZED, TIMM)
        }
        samples = conditions.time(calls)
    return {(COMPILED, TIMM): _compare(samples, OPTIMIZED, TIMM, [layout])}


def _training(network: str, batch: int, conditions: Conditions) -> Found:
    family = build_family(network, training=True)
    steps = {}
    for layout in conditions.layouts:
        images = conditions.images(batch, layout)
        for source in (OURS, TIMM):
            module = place(copy.deepcopy(family[source]), layout, conditions.device)
            steps[source, layout] = TrainingStep(module, images, conditions.dtype)
    samples = conditions.time(steps)
    speed = _compare(samples, OURS, TIMM, conditions.layouts)
    peaks = {}
    for key, step in steps.items():
        resident = resident_bytes(step.network, step.images, step.optimizer)
        peaks[key] = (resident + peak_extra_bytes(step, conditions.device)) / 2**20
    # Of each the layout that takes the least; it need not be the fastest.
    mine, theirs = (min((peaks[source, layout], layout) for layout in conditions.layouts) for source in (OURS, TIMM))
    detail = f"{OURS}, {mine[1]} / {TIMM}, {theirs[1]}"
    memory = Comparison(mine[0], theirs[0], "MiB", [theirs[0] / mine[0]], detail)
    return {(TRAINING, TIMM): speed, (MEMORY, TIMM): memory}


def _compiled_training(network: str, batch: int, conditions: Conditions) -> Found:
    layout = conditions.layouts[-1]
    images = conditions.images(batch, layout)
    family = build_family(network, training=True)
    with compiler():
        steps = {
            (source, layout): TrainingStep(
                compile_network(place(family[source], layout, conditions.device)), images, conditions.dtype
            )
            for source in (OURS, TIMM)
        }
        samples = conditions.time(steps)
    return {(COMPILED_TRAINING, TIMM): _compare(samples, OURS, TIMM, [layout])}


def _onnx(network: str, batch: int, conditions: Conditions) -> Found:
    ours = build(network)
    images = conditions.images(batch, "nchw")
    exporters = {"TorchScript": False, "dynamo": True}
    with tempfile.TemporaryDirectory() as folder:
        files = {(OURS, ""): Path(folder) / "ours.onnx"}
        export_ours(ours, files[OURS, ""], conditions.size)
        for exporter, dynamo in exporters.items():
            files[TIMM, exporter] = Path(folder) / f"timm.{exporter}.onnx"
            theirs = build_timm(ours, network, exportable=True)
            export_timm(theirs, files[TIMM, exporter], conditions.size, dynamo=dynamo)
        nodes = {key: count_nodes(file) for key, file in files.items()}
        calls = {key: run(file, images, torch.get_num_threads()) for key, file in files.items()}
        check_agreement({"/".join(key): torch.from_numpy(call()[0]) for key, call in calls.items()}, 1e-3)
        samples = conditions.time(calls)
    fewest, exporter = min((nodes[TIMM, exporter], exporter) for exporter in exporters)
    mine = nodes[OURS, ""]
    return {
        (ONNX, TIMM): _compare(samples, OURS, TIMM, exporters),
        (NODES, TIMM): Comparison(mine, fewest, "", [fewest / mine], f"{OURS} / {TIMM}, {exporter}"),
    }


def _int8(network: str, batch: int, conditions: Conditions) -> Found:
    images = conditions.images(batch, "nchw")
    with tempfile.TemporaryDirectory() as folder:
        files = {FP32: Path(folder) / "fp32.onnx", INT8: Path(folder) / "int8.onnx"}
        export_ours(build(network), files[FP32], conditions.size)
        quantize(files[FP32], files[INT8], conditions.size)
        samples = conditions.time(
            {(kind, ""): run(file, images, torch.get_num_threads()) for kind, file in files.items()}
        )
    return {(INT8, FP32): _compare(samples, INT8, FP32, [""])}


Measurement = Callable[[str, int, Conditions], Found]

# What gives the figures for each kind of target; some give those for several.
_MEASUREMENTS: dict[str, Measurement] = {
    INFERENCE: _inference,
    DEFAULT_LAYOUT: _inference,
    COMPILED: _compiled,
    TRAINING: _training,
    MEMORY: _training,
    COMPILED_TRAINING: _compiled_training,
    ONNX: _onnx,
    NODES: _onnx,
    INT8: _int8,
}


# Processes on a CPU, where it is not one.
_PROCESSES = {_inference: 5}


def here(measurement: Measurement, network: str, batch: int, conditions: Conditions) -> Found:
    """Measure in this process."""
    return measurement(network, batch, conditions)


def afresh(measurement: Measurement, network: str, batch: int, conditions: Conditions) -> Found:
    """Measure in new processes, on as many threads as here; each takes its share of the rounds."""
    processes = _PROCESSES.get(measurement, 1) if conditions.device == "cpu" else 1
    share = replace(conditions, rounds=math.ceil(conditions.rounds / processes))
    start = (conditions.device, torch.get_num_threads())
    found = []
    for _ in range(processes):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare, initargs=start) as process:
            found.append(process.submit(measurement, network, batch, share).result())
    return {key: join([each[key] for each in found]) for key in found[0]}


def join(comparisons: Sequence[Comparison]) -> Comparison:
    """Return one comparison of those that several processes made.

    Example:
        >>> join([Comparison(2.0, 4.0, "ms", [2.0], "a"), Comparison(3.0, 9.0, "ms", [3.0], "b")])
        Comparison(ours=2.5, peer=6.5, unit='ms', ratios=[2.0, 3.0], detail='a; b')
    """
    return Comparison(
        statistics.median(each.ours for each in comparisons),
        statistics.median(each.peer for each in comparisons),
        comparisons[0].unit,
        [ratio for each in comparisons for ratio in each.ratios],
        "; ".join(dict.fromkeys(each.detail for each in comparisons)),
    )


def measure(
    targets: Sequence[Target],
    conditions: Conditions,
    begin: Callable[[str], None] = lambda _: None,
    run_measurement: Callable[[Measurement, str, int, Conditions], Found] = here,
) -> Iterator[dict[str, object]]:
    """Measure targets, those that need the same measurement together.

    Args:
        targets: What to measure, all for the device of the conditions.
        conditions: How to measure.
        begin: Told what is measured next, once per target.
        run_measurement: Where: ``here`` or ``afresh``.

    Yields:
        A row for each target. Its ratio is empty, and the note says why, where a package is missing.
    """
    done: dict[tuple[object, ...], Found] = {}
    notes: dict[tuple[object, ...], str] = {}
    for target in targets:
        begin(f"{target.what}: {target.network}, batch {target.batch}")
        measurement = _MEASUREMENTS[target.what]
        key = (measurement, target.network, target.batch)
        if key not in done:
            try:
                done[key] = run_measurement(measurement, target.network, target.batch, conditions)
            except ImportError as error:
                done[key], notes[key] = {}, str(error)
        found = done[key].get((target.what, target.peer))
        yield _row(target, conditions, found, notes.get(key, "")) | origin(conditions.device)


def _row(target: Target, conditions: Conditions, found: Comparison | None, note: str) -> dict[str, object]:
    row: dict[str, object] = {
        "what": target.what,
        "network": target.network,
        "batch": target.batch,
        "size": conditions.size,
        "dtype": conditions.dtype,
        "peer": target.peer,
        "target": f"{target.ratio:.2f}",
    }
    if found is None:
        names = ("ours", "peer_figure", "unit", "ratio", "ratio_q1", "ratio_q3", "rounds", "reached", "detail")
        return row | dict.fromkeys(names, "") | {"note": note or f"{target.peer} is not installed"}
    ratio = spread(found.ratios)
    return row | {
        "ours": f"{found.ours:.4g}",
        "peer_figure": f"{found.peer:.4g}",
        "unit": found.unit,
        "ratio": f"{ratio.median:.3f}",
        "ratio_q1": f"{ratio.q1:.3f}",
        "ratio_q3": f"{ratio.q3:.3f}",
        "rounds": len(found.ratios),
        "reached": "yes" if ratio.median >= target.ratio else "no",
        "detail": found.detail,
        "note": note,
    }


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return what a row is about."""
    return tuple(str(row[column]) for column in ("what", "network", "batch", "peer"))


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = default_device(),
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    only: Annotated[str, typer.Option(help="Start of the kind of aim: measure those again, keep today's others.")] = "",
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Measure every aim that is set for a device."""
    try:
        prepare(device, threads=1)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    conditions = Conditions(device, rounds=rounds, seconds=seconds)
    targets = [target for target in TARGETS if target.device == device]
    wanted = [target for target in targets if target.what.startswith(only)]
    if not wanted:
        raise typer.BadParameter(f"expected the start of {', '.join(dict.fromkeys(t.what for t in targets))}")
    path = out / file_name("targets", device, [conditions.dtype])
    rows: dict[tuple[str, ...], dict[str, object]] = {}
    if only and path.exists():
        rows = {_key(row): dict(row) for row in read(path)}
    order = [(target.what, target.network, str(target.batch), target.peer) for target in targets]
    with progress(len(wanted)) as begin:
        for row in measure(wanted, conditions, begin, afresh):
            rows[_key(row)] = row
            write([rows[key] for key in order if key in rows], path)  # a run that is cut short leaves what it has
    for row in rows.values():
        typer.echo(
            f"{row['what']}, {row['network']}, batch {row['batch']}: {row['ratio']} ({row['target']}) {row['note']}"
        )
    typer.echo(path)


if __name__ == "__main__":
    typer.run(main)

"""The benchmarks of speed and complexity: what they count is right, what they write is complete. No speed is judged."""

import doctest
import functools
import importlib.util
import itertools
import math
import os
import shutil

import pytest
import timm
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from benchmarks import _device as device
from benchmarks import complexity, latency, make_tables, plots, profile, runtimes, targets, throughput
from benchmarks._apart import interleave_apart, processes
from benchmarks._memory import peak_extra_bytes, resident_bytes
from benchmarks._operators import record
from benchmarks._peers import OPTIMIZED, OURS, SCALE, TIMM, TRANSFORMERS, build_family, check_agreement, timm_name
from benchmarks._results import file_name, newest, read, write
from benchmarks._roofline import Rates, measure_rates
from benchmarks._steps import TrainingStep, inference
from benchmarks._timing import interleave
from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")


def smallest(block):
    return min(
        (name for name in NAMES if VARIANTS[name].block == block), key=lambda name: complexity.count(name, 64, 64)
    )


V1, V2, V3 = smallest("v1"), smallest("v2"), smallest("v3_separable")
RATES = Rates(flops=1e9, bytes=1e9)
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None  # not beside the oldest versions


@pytest.fixture
def command():
    def run(main, *arguments):
        app = typer.Typer()
        app.command()(main)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.mark.parametrize(
    "name",
    [
        "_memory",
        "_operators",
        "_peers",
        "_roofline",
        "_timing",
        "complexity",
        "plots",
        "profile",
        "targets",
        "throughput",
    ],
)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"benchmarks.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed


def test_calls_alternate():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "AB"}
    samples = interleave(calls, rounds=3, seconds=0)
    assert order == ["A", "A", "B", "B", *"ABABAB"]
    assert {name: len(times) for name, times in samples.items()} == {"A": 3, "B": 3}


def test_samples_last():
    count = itertools.count()
    interleave({"A": lambda: (next(count), torch.rand(1000))}, rounds=1, seconds=0.01)
    assert next(count) > 10


def test_peak_memory_is_exact():
    a = torch.zeros(1000)

    def step():
        b = a + a  # 4000 bytes
        c = b * a  # 8000
        del b
        return c + a  # 8000

    assert peak_extra_bytes(step, "cpu") == 8000
    assert peak_extra_bytes(step, "cpu") == 8000
    layer = nn.Linear(10, 10)
    training = TrainingStep(layer, torch.zeros(4, 10))
    before = resident_bytes(layer, training.optimizer)
    training()
    assert resident_bytes(layer, training.optimizer) >= before + 2 * 440  # two moments of AdamW
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_operators_count_what_torch_counts():
    model = timm.create_model(V1).eval()
    operators = record(inference(model, torch.rand(1, 3, 64, 64), mode=torch.no_grad))
    assert sum(operator.flops for operator in operators) // 2 == complexity.count(V1, 64, 64)[1]
    assert any(operator.name == "_scaled_dot_product_flash_attention_for_cpu" for operator in operators)


def test_operators_of_a_training_step_include_the_backward_pass():
    model = timm.create_model(V1)
    images = torch.rand(2, 3, 64, 64)
    forward = sum(op.flops for op in record(inference(model, images, mode=torch.no_grad)))
    step = sum(op.flops for op in record(TrainingStep(model, images)))
    stem = record(lambda: model.stem.conv(images))[0].flops
    # The backward pass takes twice as much, but for the images' gradient. Attention is computed once more in it.
    assert 3 * forward - stem < step < 3.2 * forward


def test_in_place_operators_and_views():
    a = torch.zeros(100)
    assert [(op.name, op.bytes) for op in record(lambda: a.add_(1))] == [("add_", 800)]
    assert record(lambda: a.view(10, 10).t()[1:]) == []
    assert record(lambda: torch.empty(5)) == []


@pytest.mark.parametrize("name", NAMES)
def test_kinds_add_up(name):
    kinds = complexity.count_by_kind(name, 96, 64)
    total = sum(kind.parameters for kind in kinds.values()), sum(kind.macs for kind in kinds.values())
    assert total == complexity.count(name, 96, 64)
    assert all(kinds[kind].activations for kind in complexity.KINDS)


def test_complexity_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["complexity", "--img-size", "64", "--model", V1, "--by-kind"])
    complexity.main()
    out = capsys.readouterr().out
    assert all(kind in out for kind in complexity.KINDS)
    assert f"{complexity.count(V1, 64, 64)[0]:,}" in out.splitlines()[-1]
    monkeypatch.setattr("sys.argv", ["complexity", "--img-size", "64", "--model", V2, "--optimized"])
    complexity.main()
    assert f"{complexity.count(V2, 64, 64, optimized=True)[0]:,}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["complexity", "--model", "mobilevit_s"])
    with pytest.raises(SystemExit):
        complexity.main()
    assert "got 'mobilevit_s'" in capsys.readouterr().err


def test_families_are_the_same_network():
    pytest.importorskip("transformers")
    assert list(build_family(V2)) == [OURS, OPTIMIZED, TIMM, TRANSFORMERS]
    assert list(build_family(V1, training=True)) == [OURS, TIMM, TRANSFORMERS]
    assert list(build_family(V3)) == [OURS, OPTIMIZED]
    with pytest.raises(RuntimeError, match="b and a differ"):
        check_agreement({"a": torch.rand(2, 5), "b": torch.rand(2, 5)}, 1e-3)
    with pytest.raises(RuntimeError, match="differ by nan"):
        check_agreement({"a": torch.rand(2, 5), "b": torch.full((2, 5), math.nan)}, 1e-3)


def test_peers_exist():
    for name in NAMES:
        assert (timm_name(name) is None) == VARIANTS[name].block.startswith("v3")
        assert timm_name(name) is None or timm.is_model(timm_name(name))
    assert all(map(timm.is_model, SCALE))
    assert set(throughput.NETWORKS) <= set(NAMES)
    assert {target.network for target in targets.TARGETS} <= set(NAMES)


def test_rates_are_positive():
    rates = measure_rates("cpu", "fp32", matrix=64, copy=1 << 16)
    assert rates.flops > 0
    assert rates.bytes > 0


@pytest.mark.parametrize(("task", "dtype"), [("inference", "bf16"), ("training", "fp32")])
def test_throughput(task, dtype):
    setting = throughput.Setting(task=task, dtype=dtype, batch=2, size=64, networks=(V1, SCALE[0]))
    rows = throughput.measure(setting, device="cpu", rates=RATES, rounds=2, seconds=0)
    assert len({(row["network"], row["source"]) for row in rows}) == len(rows) >= 3 + HAS_TRANSFORMERS
    assert {row["network"] for row in rows} == {V1, SCALE[0]}
    for row in rows:
        for column in ("images_per_s", "peak_mib", "gflop", "gbyte", "matmul_share", "roofline_share"):
            assert 0 < float(row[column]) < math.inf, column
        compared = row["network"] == V1 and row["source"] in (TIMM, TRANSFORMERS)
        assert bool(row["ours_faster"]) == compared


def test_throughput_command(command, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "measure_rates", lambda *_: RATES)
    small = ("--network", V3, "--img-size", 64, "--rounds", 1, "--seconds", 0, "--out", tmp_path, "--device", "cpu")
    result = command(throughput.main, *small, "--batch-size", 1, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    assert path == newest("throughput", "cpu", tmp_path)
    rows = read(path)
    assert [row["batch"] for row in rows] == ["1", "1", "2", "2"]
    assert all(row["torch"] and row["date"] and row["device"] and row["threads"] == "1" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "all"), "expected a preset of cpu, cpu-autocast"),
        (("--task", "sleeping"), "expected one of inference, training, got 'sleeping'"),
        (("--network", "mobilevitv9"), "got 'mobilevitv9'"),
        (("--device", "tpu"), "expected the device cpu or cuda, got 'tpu'"),
    ],
)
def test_throughput_refuses(command, arguments, message):
    result = command(throughput.main, "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_an_absent_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="found none: measure with --device cpu"):
        device.prepare("cuda", 1)


def test_settings_beyond_the_memory_are_left_out(command, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "measure_rates", lambda *_: RATES)

    def measure(setting, **_):
        if setting.batch == 2:
            raise torch.OutOfMemoryError
        return [{"batch": setting.batch}]

    monkeypatch.setattr(throughput, "measure", measure)
    sizes = itertools.chain.from_iterable(("--batch-size", size) for size in (1, 2, 3))
    result = command(throughput.main, "--device", "cpu", "--out", tmp_path, *sizes)
    assert result.exit_code == 0
    (path,) = tmp_path.iterdir()
    assert [row["batch"] for row in read(path)] == ["1", "3"]


def test_each_call_is_timed_in_its_process():
    with processes("ab") as executors:
        makers = {"a": functools.partial(functools.partial, os.getpid), "b": functools.partial(os.getenv, "HOME")}
        with pytest.raises(TypeError, match="not callable"):  # the text that the maker of b gave is no call
            interleave_apart(executors, makers, rounds=1, seconds=0)
        samples, missing = interleave_apart(executors, {"a": makers["a"]}, rounds=3, seconds=0)
        pids = {key: executor.submit(os.getpid).result() for key, executor in executors.items()}
    assert len(samples["a"]) == 3
    assert not missing
    assert len({os.getpid(), *pids.values()}) == 3


def test_latency(command, tmp_path):
    pytest.importorskip("onnxruntime")
    small = ("--network", V2, "--img-size", 64, "--rounds", 1, "--seconds", 0, "--out", tmp_path)
    runtimes = ("optimized", "eager", "onnxruntime")
    options = itertools.chain.from_iterable(("--runtime", runtime) for runtime in runtimes)
    result = command(latency.main, "--preset", "runtimes", *small, *options)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    rows = read(path)
    assert {(row["source"], row["runtime"]) for row in rows} == {
        *((OURS, runtime) for runtime in runtimes),
        (TIMM, "eager"),
        (TIMM, "onnxruntime"),
    }
    assert {int(row["threads"]) for row in rows} == {1, device.all_threads()}
    assert all(0 < float(row["ms"]) < math.inf and not row["note"] for row in rows)


def test_a_missing_runtime_is_noted(monkeypatch):
    def missing(*_):
        raise ImportError('pip install "timm-mobilevit[onnx]"')

    monkeypatch.setattr(latency, "export_ours", missing)
    rows = latency.measure(
        V3, runtimes=("eager", "onnxruntime"), with_timm=True, size=64, threads=(1,), rounds=1, seconds=0
    )
    assert [(row["runtime"], bool(row["ms"]), row["note"]) for row in rows] == [
        ("eager", True, ""),
        ("onnxruntime", False, 'pip install "timm-mobilevit[onnx]"'),
    ]


def test_latency_refuses(command):
    for arguments, message in (
        (("--preset", "all"), "expected a preset of models, runtimes"),
        (("--network", "mobilevit_s"), "got 'mobilevit_s'"),
        (("--runtime", "abacus"), "got 'abacus'"),
    ):
        result = command(latency.main, *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.long
def test_exported_files_take_turns(command, tmp_path, monkeypatch):
    small = ("--network", smallest("v1"), "--img-size", "64", "--formats", "onnx", "--threads", "1", "--seconds", "0")
    result = command(runtimes.main, *small, "--rounds", "2", "--files", tmp_path / "files", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = read(newest("exported", "cpu", tmp_path))
    ours = {row["precision"]: row for row in rows if row["source"] == OURS}
    assert {"fp32", "int8"} <= ours.keys()
    assert float(ours["int8"]["mib"]) < 0.5 * float(ours["fp32"]["mib"])
    assert all(float(row["ms_q1"]) <= float(row["ms"]) <= float(row["ms_q3"]) for row in ours.values())
    (timms,) = (row for row in rows if row["source"] == TIMM)
    assert timms["ms"] or "timmx" in timms["note"]
    monkeypatch.setattr(make_tables, "newest", lambda bench, device: newest(bench, device, tmp_path))
    assert f"| `{smallest('v1')}` | ONNX | int8 | ours |" in make_tables.exported()


def test_exported_files_refuse(command):
    for arguments, message in (
        (("--network", "resnet18"), "expected models that"),
        (("--formats", "onnx,tflite"), "got tflite"),
    ):
        result = command(runtimes.main, *arguments)
        assert result.exit_code == 2
        assert message in result.output


def aims(*whats):
    return [targets.Target("cpu", what, V2, 2, peer, ratio) for what, peer, ratio in whats]


def test_profile_adds_up(command):
    options = ("--network", V2, "--size", 64, "--passes", 1, "--rows", 3)
    result = command(profile.main, *options)
    assert result.exit_code == 0
    *rows, others, total = (
        [float(cell) for cell in line.split("│")[2:-1]] for line in result.output.splitlines() if line.startswith("│")
    )
    assert len(rows) == 3
    for *parts, whole in zip(*rows, others, total, strict=True):
        assert whole > 0
        assert sum(parts) == pytest.approx(whole, abs=0.05)
    assert command(profile.main, "--network", "mobilevit_s").exit_code == 2
    assert command(profile.main, "--layout", "nhwc").exit_code == 2


def test_targets_in_torch():
    pytest.importorskip("transformers")
    wanted = aims(
        (targets.INFERENCE, TIMM, 1e-6),
        (targets.DEFAULT_LAYOUT, TIMM, 1e6),
        (targets.INFERENCE, TRANSFORMERS, 1.0),
        (targets.TRAINING, TIMM, 1.0),
        (targets.MEMORY, TIMM, 0.5),
    )
    begun = []
    rows = list(targets.measure(wanted, targets.Conditions("cpu", size=64, rounds=2, seconds=0), begun.append))
    assert len(rows) == len(begun) == len(wanted)
    for row in rows:
        assert 0 < float(row["ratio_q1"]) <= float(row["ratio"]) <= float(row["ratio_q3"]) < math.inf
    assert [row["reached"] for row in rows[:2]] == ["yes", "no"]
    assert rows[1]["detail"].endswith("timm, nchw")
    assert rows[4]["unit"] == "MiB"
    assert rows[4]["reached"] == "yes"


@pytest.mark.long
def test_targets_in_processes_of_their_own(monkeypatch):
    threads = torch.get_num_threads()
    conditions = targets.Conditions("cpu", size=64, rounds=3, seconds=0)
    for count in (1, 2):
        found = targets.afresh(_process, V2, threads, conditions)["process", V2]
        assert found.ours == os.getpid()
        assert found.peer == {1: 3, 2: 2}[count]  # rounds of each, one more than asked for
        assert len(set(found.ratios) - {os.getpid()}) == count
        monkeypatch.setitem(targets._PROCESSES, _process, 2)
    (row,) = targets.measure(aims((targets.MEMORY, TIMM, 0.5)), conditions, run_measurement=targets.afresh)
    assert row["reached"] == "yes"
    (row,) = targets.measure(aims((targets.INFERENCE, TIMM, 1e-6)), conditions, run_measurement=targets.afresh)
    assert (row["rounds"], row["reached"]) == (targets._PROCESSES[targets._inference], "yes")


def _process(network, threads, conditions):
    """Numbers of the parent and of this process, in place of a measurement; from a child that has its threads."""
    assert torch.get_num_threads() == threads
    return {("process", network): targets.Comparison(os.getppid(), conditions.rounds, "", [os.getpid()], "")}


@pytest.mark.long
def test_targets_in_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    wanted = aims((targets.ONNX, TIMM, 1.0), (targets.NODES, TIMM, 1.0), (targets.INT8, targets.FP32, 1.0))
    rows = list(targets.measure(wanted, targets.Conditions("cpu", size=64, rounds=2, seconds=0)))
    assert all(0 < float(row["ratio"]) < math.inf for row in rows)
    assert float(rows[1]["ratio"]) == pytest.approx(int(rows[1]["peer_figure"]) / int(rows[1]["ours"]), abs=1e-3)


@pytest.mark.long
def test_targets_compiled():
    wanted = aims((targets.COMPILED, TIMM, 1.0))
    rows = list(targets.measure(wanted, targets.Conditions("cpu", size=64, rounds=2, seconds=0)))
    assert all(0 < float(row["ratio"]) < math.inf for row in rows)


@pytest.mark.long
def test_throughput_compiled():
    setting = throughput.Setting(task="training", mode="compiled", batch=2, size=64, networks=(V3,))
    rows = throughput.measure(setting, device="cpu", rates=RATES, rounds=1, seconds=0)
    assert all(float(row["images_per_s"]) > 0 and row["roofline_share"] == "" for row in rows)


def test_a_target_without_its_package_is_noted(monkeypatch):
    def missing(*_):
        raise ImportError('pip install "timm-mobilevit[onnx]"')

    monkeypatch.setattr(targets, "export_ours", missing)
    (row,) = targets.measure(aims((targets.NODES, TIMM, 1.0)), targets.Conditions("cpu", size=64))
    assert (row["ratio"], row["reached"]) == ("", "")
    assert row["note"] == 'pip install "timm-mobilevit[onnx]"'


def test_targets_command(command, tmp_path, monkeypatch):
    """Every row is written as soon as it is there."""

    def measure(wanted, conditions, begin, run_measurement):
        for target in wanted:
            begin(target.what)
            yield targets._row(target, conditions, targets.Comparison(1.0, 2.0, "ms", [2.0], ""), "") | {"note": ""}
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "measure", measure)
    assert command(targets.main, "--device", "cpu", "--out", tmp_path).exit_code != 0
    (path,) = tmp_path.iterdir()
    assert path == newest("targets", "cpu", tmp_path)
    assert len(read(path)) == sum(target.device == "cpu" for target in targets.TARGETS)


def test_targets_measured_again_replace_their_rows(command, tmp_path, monkeypatch):
    def measure_as(ours):
        def measure(wanted, conditions, begin, run_measurement):
            for target in wanted:
                found = targets.Comparison(ours, 2.0, "ms", [2.0 / ours], "")
                yield targets._row(target, conditions, found, "") | targets.origin("cpu")

        monkeypatch.setattr(targets, "measure", measure)
        return ("--device", "cpu", "--out", tmp_path)

    assert command(targets.main, *measure_as(1.0)).exit_code == 0
    (path,) = tmp_path.iterdir()
    first = read(path)
    assert command(targets.main, *measure_as(0.5), "--only", "training").exit_code == 0
    for old, new in zip(first, read(path), strict=True):
        assert new == old | (
            {"ours": "0.5", "ratio": "4.000", "ratio_q1": "4.000", "ratio_q3": "4.000", "reached": "yes"}
            if old["what"] == targets.TRAINING
            else {}
        )
    result = command(targets.main, "--device", "cpu", "--out", tmp_path, "--only", "sleeping")
    assert result.exit_code == 2
    assert "expected the start of" in result.output


def test_every_target_has_a_measurement():
    assert {target.what for target in targets.TARGETS} == set(targets._MEASUREMENTS)
    assert {target.device for target in targets.TARGETS} == set(make_tables._DEVICES)


def test_the_newest_file_wins(tmp_path):
    for name in (
        "targets_cpu_fp32_torch2.12.1_timm1.0.31_2026-01-02.csv",
        "targets_cpu_fp32_torch2.9.0_timm1.0.31_2026-01-03.csv",
        "targets_nvidia-h200_bf16_torch2.11.0_timm1.0.31_2026-01-04.csv",
        "targets-extra_cpu_fp32_torch2.9.0_timm1.0.31_2026-01-05.csv",
        "targets_cpu.csv",
    ):
        write([{"a": 1}], tmp_path / name)
    assert newest("targets", "cpu", tmp_path).name.endswith("2026-01-03.csv")
    assert newest("targets", "cuda", tmp_path).name.startswith("targets_nvidia-h200")
    assert newest("latency", "cpu", tmp_path) is None
    write([{"a": 1}], tmp_path / file_name("latency", "cpu", ["fp32", "bf16"]))
    assert newest("latency", "cpu", tmp_path).name.startswith("latency_cpu_fp32-bf16_torch")


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "a.csv"
    write([{"a": 1}], path)
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write([{"a": 2}, {"b": 3}], path)
    assert list(tmp_path.iterdir()) == [path]
    assert read(path) == [{"a": "1"}]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results, as the benchmarks write them."""
    results = tmp_path_factory.mktemp("results")
    rows = latency.measure(
        V1, runtimes=("eager", "optimized"), with_timm=False, size=64, threads=(1, 2), rounds=1, seconds=0
    )
    write(rows + [row | {"runtime": "onnxruntime"} for row in rows], results / file_name("latency", "cpu", ["fp32"]))
    write(rows, results / file_name("latency-runtimes", "cpu", ["fp32"]))
    rows = []
    for batch, size in ((2, 64), (2, 128), (4, 64)):
        setting = throughput.Setting(batch=batch, size=size, networks=(V2,))
        measured = throughput.measure(setting, device="cpu", rates=RATES, rounds=1, seconds=0)
        rows += [row | {"size": 256} if size == 64 else row for row in measured]
    write(rows, results / file_name("throughput", "cpu", ["fp32"]))
    targets_rows = [
        targets._row(target, targets.Conditions("cpu"), targets.Comparison(2.0, 3.0, "ms", [1.5, 1.4, 1.6], ""), "")
        for target in targets.TARGETS
        if target.device == "cpu"
    ]
    write([row | targets.origin("cpu") for row in targets_rows], results / file_name("targets", "cpu", ["fp32"]))
    return results


@pytest.fixture
def measured(results, tmp_path, monkeypatch):
    """A copy of the results, which the tables and figures are made from."""
    folder = shutil.copytree(results, tmp_path / "results")
    for module in (make_tables, plots):
        monkeypatch.setattr(module, "newest", lambda bench, device, _=None: newest(bench, device, folder))
    return folder


def test_tables_of_measurements(measured):
    table = make_tables.targets()
    assert table.count("1.500 (1.450–1.550)") == sum(target.device == "cpu" for target in targets.TARGETS)
    assert all("not measured" in line for line in table.splitlines() if "| 256 |" in line)
    assert f"| `{V1}` |" in make_tables.latency()
    assert "eager, 1 thread | " in make_tables.latency()
    assert "optimized, 2 threads" in make_tables.latency()
    assert make_tables.runtimes().startswith("| network | from | on | eager | optimized |")
    assert f"| `{V1}` | ours | 2 threads |" in make_tables.runtimes()
    assert f"| inference | `{V2}` | {TIMM} | 4 |" in make_tables.throughput()
    assert "--preset cuda" in make_tables.throughput()
    assert "(accuracy_latency.svg)" in make_tables.figures()
    assert "throughput_gpu" not in make_tables.figures()


def test_figures_say_what_they_were_drawn_from(measured, tmp_path):
    pytest.importorskip("matplotlib")
    docs = tmp_path / "docs"
    drawn = [figure for figure in plots.FIGURES if newest(figure.bench, figure.device, measured)]
    assert len(plots.outdated(docs=docs)) == 2 * len(drawn) == 4
    for figure in drawn:
        plots.write(figure, newest(figure.bench, figure.device, measured), docs)
    assert plots.outdated(docs=docs) == []
    first = (docs / "accuracy_latency.svg").read_bytes()
    assert V1.partition("_")[2].encode() in first
    plots.write(drawn[0], newest(drawn[0].bench, drawn[0].device, measured), docs)
    assert (docs / "accuracy_latency.svg").read_bytes() == first

    path = newest("latency", "cpu", measured)
    write(read(path)[:-1], path)
    assert plots.outdated(docs=docs) == ["accuracy_latency.svg", "accuracy_latency.png"]
    path.unlink()
    assert plots.outdated(docs=docs) == ["accuracy_latency.svg", "accuracy_latency.png"]


def test_committed_figures_are_up_to_date():
    assert plots.outdated() == []

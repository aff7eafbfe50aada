"""What all benchmarks share: clocks, processes, counts of operators and memory, the peers, files of results."""

import doctest
import functools
import importlib.util
import itertools
import math
import os

import pytest
import timm
import torch
from bench_models import NAMES, V1, V2, V3
from torch import nn

from benchmarks import _roofline, complexity, targets, throughput
from benchmarks._apart import interleave_apart, processes
from benchmarks._memory import peak_extra_bytes, resident_bytes
from benchmarks._operators import record
from benchmarks._peers import OPTIMIZED, OURS, SCALE, TIMM, TRANSFORMERS, build_family, check_agreement, timm_name
from benchmarks._results import file_name, newest, read, write
from benchmarks._roofline import measure_rates
from benchmarks._steps import TrainingStep, inference
from benchmarks._timing import interleave, ratios, seconds_of
from timm_mobilevit.variants import VARIANTS


@pytest.mark.parametrize(
    "name",
    [
        "_memory",
        "_operators",
        "_peers",
        "_roofline",
        "_timing",
        "complexity",
        "exports",
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


def test_families_are_the_same_network():
    pytest.importorskip("transformers")
    assert list(build_family(V2)) == [OURS, OPTIMIZED, TIMM, TRANSFORMERS]
    assert list(build_family(V1, training=True)) == [OURS, TIMM, TRANSFORMERS]
    assert list(build_family(V3)) == [OURS, OPTIMIZED]
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert next(build_family(V3, dtype=dtype)[OPTIMIZED].stages.parameters()).dtype == expected
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


def test_rates_are_those_of_the_shortest_time(monkeypatch):
    seconds = {"matmul": [0.5, 0.25, 1.0], "copy": [2.0, 0.5, 1.0]}
    monkeypatch.setattr(
        _roofline, "interleave", lambda calls, **_: {key: (call(), seconds[key])[1] for key, call in calls.items()}
    )
    rates = measure_rates("cpu", "fp32", matrix=64, copy=1 << 16)
    assert rates.flops == 2 * 64**3 / 0.25
    assert rates.bytes == 2 * 65536 / 0.5  # read and written


def test_a_sample_is_the_mean_of_its_repeats(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    assert seconds_of(lambda: calls.append(1), repeats=3) == 2.0
    assert len(calls) == 3
    assert ratios([3.0, 8.0], [1.0, 2.0]) == [3.0, 4.0]


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

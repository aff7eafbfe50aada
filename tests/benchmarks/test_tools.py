"""What all benchmarks share: clocks, processes, memory, the peers, files of results."""

import doctest
import functools
import importlib.util
import itertools
import math
import os

import numpy as np
import pytest
import timm
import torch
from bench_models import V1, V2, V3
from kinds import NAMES
from torch import nn

from benchmarks import exports, speed
from benchmarks._apart import interleave_apart, processes
from benchmarks._memory import peak_bytes
from benchmarks._peers import (
    OPTIMIZED,
    OURS,
    SCALE,
    TIMM,
    TRANSFORMERS,
    build_source,
    check_agreement,
    sources,
    timm_name,
)
from benchmarks._results import file_name, instructions, newest, read, write
from benchmarks._steps import TrainingStep
from benchmarks._timing import interleave, ratios, seconds_of
from timm_mobilevit.variants import VARIANTS


@pytest.mark.parametrize(
    "name",
    ["_peers", "_results", "_timing", "complexity", "exports", "plots"],
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


def no_package():
    raise ImportError("pip install b")


def test_each_call_is_timed_in_its_process():
    with processes("ab") as executors:
        makers = {"a": functools.partial(functools.partial, os.getpid), "b": functools.partial(os.getenv, "HOME")}
        with pytest.raises(TypeError, match="not callable"):  # the text that the maker of b gave is no call
            interleave_apart(executors, makers, rounds=1, seconds=0)
        times = interleave_apart(executors, {"a": makers["a"], "b": no_package}, rounds=3, seconds=0)
        pids = {key: executor.submit(os.getpid).result() for key, executor in executors.items()}
    assert {key: len(samples) for key, samples in times.samples.items()} == {"a": 3}
    assert times.outputs == {"a": pids["a"]}
    assert times.missing == {"b": "pip install b"}
    assert len({os.getpid(), *pids.values()}) == 3


def test_peak_memory_is_exact():
    """A linear layer [10, 10] has 440 bytes of parameters, of gradients, and of each of two moments."""
    step = TrainingStep(nn.Linear(10, 10), torch.zeros(4, 10))
    step()
    held = 440 + 2 * 440 + 160 + 2 * 4  # AdamW counts the steps of each parameter
    peak = peak_bytes(step, "cpu")
    assert held + 440 < peak < held + 440 + 2000  # the gradients, and small tensors of the loss
    assert peak_bytes(step, "cpu") == peak
    assert all(parameter.grad is None for parameter in step.network.parameters())


def test_sources_are_the_same_network():
    pytest.importorskip("transformers")
    assert sources(V2) == [OURS, OPTIMIZED, TIMM, TRANSFORMERS]
    assert sources(V1, training=True) == [OURS, TIMM, TRANSFORMERS]
    assert sources(V3) == [OURS, OPTIMIZED]
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        outputs = {source: build_source(V2, source)(images).numpy() for source in sources(V2)}
    check_agreement(outputs, 1e-4)
    assert build_source(V2, TIMM, training=True).training
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert next(build_source(V3, OPTIMIZED, dtype=dtype).stages.parameters()).dtype == expected
    with pytest.raises(ValueError, match=f"timm has no {V3}"):
        build_source(V3, TIMM)


@pytest.mark.parametrize("name", [V1, V2, V3])
def test_outputs_depend_on_the_image(name):
    """Otherwise implementations that compute different things would seem to agree."""
    with torch.inference_mode():
        one, other = build_source(name, OURS)(torch.rand(2, 3, 64, 64))
    assert (one - other).abs().max() > 0.1 * one.std()


def test_networks_that_differ_are_refused():
    numbers = np.random.default_rng(0).random((2, 5), np.float32)
    with pytest.raises(RuntimeError, match="b and a differ"):
        check_agreement({"a": numbers, "b": numbers[::-1]}, 1e-3)
    with pytest.raises(RuntimeError, match="differ by nan"):
        check_agreement({"a": numbers, "b": np.full_like(numbers, math.nan)}, 1e-3)
    check_agreement({"a": numbers, "b": numbers + 1e-5}, 1e-3)


def test_peers_exist():
    for name in NAMES:
        assert (timm_name(name) is None) == VARIANTS[name].block.startswith("v3")
        assert timm_name(name) is None or timm.is_model(timm_name(name))
    assert all(map(timm.is_model, SCALE))
    assert {*speed.NETWORKS, *exports.NETWORKS, *exports.TRAINED} <= set(NAMES)


def test_a_sample_is_the_mean_of_its_repeats(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    assert seconds_of(lambda: calls.append(1), repeats=3) == 2.0
    assert len(calls) == 3
    assert ratios([3.0, 8.0], [1.0, 2.0]) == [3.0, 4.0]


def test_the_newest_file_of_each_device_wins(tmp_path):
    for name in (
        "speed_cpu-avx2_torch2.12.1_timm1.0.31_2026-01-02.csv",
        "speed_cpu-avx2_torch2.9.0_timm1.0.31_2026-01-03.csv",
        "speed_nvidia-h200_torch2.11.0_timm1.0.31_2026-01-01.csv",
        "speed_cpu-amx_torch2.11.0_timm1.0.31_2026-01-01.csv",
        "speed-extra_cpu-avx2_torch2.9.0_timm1.0.31_2026-01-05.csv",
        "speed_cpu-avx2.csv",
    ):
        write([{"a": 1}], tmp_path / name)
    assert {device: path.name[-14:-4] for device, path in newest("speed", tmp_path).items()} == {
        "cpu-avx2": "2026-01-03",
        "cpu-amx": "2026-01-01",
        "nvidia-h200": "2026-01-01",
    }
    assert list(newest("speed", tmp_path)) == ["cpu-avx2", "cpu-amx", "nvidia-h200"]  # the best set last
    assert newest("latency", tmp_path) == {}
    write([{"a": 1}], tmp_path / file_name("latency", "cpu"))
    assert len(newest("latency", tmp_path)) == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx avx2 fma", "avx2"),
        ("avx2 avx512f avx512bw", "avx512"),
        ("avx2 avx512bw avx512_vnni", "avx512_vnni"),
        ("avx2 avx512bw avx512_vnni avx512_bf16", "avx512_bf16"),
        ("avx2 avx_vnni avx512bw avx512_vnni avx512_bf16 amx_bf16 amx_int8", "amx"),
        ("fp asimd asimddp i8mm", "neon"),
        ("mmx", "unknown"),
    ],
)
def test_the_instruction_set_is_the_best_one(tmp_path, flags, expected):
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: A processor\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert instructions(info) == expected
    assert instructions(tmp_path / "none") == "unknown"


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "a.csv"
    write([{"a": 1}], path)
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write([{"a": 2}, {"b": 3}], path)
    assert list(tmp_path.iterdir()) == [path]
    assert read(path) == [{"a": "1"}]

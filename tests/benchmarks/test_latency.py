"""Latency: rows are complete. No speed is judged."""

import itertools
import math

import pytest
from bench_models import V2, V3

from benchmarks import _device as device
from benchmarks import latency
from benchmarks._peers import OURS, TIMM
from benchmarks._results import read


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
    seconds = [0.001, 0.002, 0.004]
    monkeypatch.setattr(latency, "interleave_apart", lambda _, makers, **options: (dict.fromkeys(makers, seconds), {}))
    rows = latency.measure(
        V3, runtimes=("eager", "onnxruntime"), with_timm=True, size=64, threads=(1,), rounds=1, seconds=0
    )
    assert [(row["runtime"], row["ms"], row["ms_q1"], row["ms_q3"], row["note"]) for row in rows] == [
        ("eager", "2.00", "1.50", "3.00", ""),
        ("onnxruntime", "", "", "", 'pip install "timm-mobilevit[onnx]"'),
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

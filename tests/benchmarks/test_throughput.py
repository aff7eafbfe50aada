"""Throughput and memory: rows are complete, and what they say of given times is right. No speed is judged."""

import itertools
import math

import pytest
import torch
from bench_models import HAS_TRANSFORMERS, RATES, V1, V3

from benchmarks import _device as device
from benchmarks import throughput
from benchmarks._peers import OPTIMIZED, OURS, SCALE, TIMM, TRANSFORMERS
from benchmarks._results import newest, read
from benchmarks.complexity import count


@pytest.mark.parametrize(("task", "dtype"), [("inference", "bf16"), ("training", "fp32")])
def test_throughput(task, dtype, monkeypatch):
    """In seconds: ours takes half of one, timm's and transformers' one."""
    ours = OURS if task == "training" else OPTIMIZED
    seconds = {ours: [0.25, 0.5, 1.0], TIMM: [1.0, 1.0, 3.0], TRANSFORMERS: [1.0, 1.0, 3.0]}
    times = {key: seconds.get(key, [9.0] * 3) for key in (OURS, *seconds)}
    monkeypatch.setattr(throughput, "interleave", lambda steps, **_: {key: times[key[1]] for key in steps})
    setting = throughput.Setting(task=task, dtype=dtype, batch=2, size=64, networks=(V1, SCALE[0]))
    rows = throughput.measure(setting, device="cpu", rates=RATES, rounds=2, seconds=0)
    assert len({(row["network"], row["source"]) for row in rows}) == len(rows) >= 3 + HAS_TRANSFORMERS
    assert {row["network"] for row in rows} == {V1, SCALE[0]}
    for row in rows:
        for column in ("images_per_s", "peak_mib", "gflop", "gbyte", "matmul_share", "roofline_share"):
            assert 0 < float(row[column]) < math.inf, column
        compared = row["network"] == V1 and row["source"] in (TIMM, TRANSFORMERS)
        faster = [row[f"ours_faster{quartile}"] for quartile in ("", "_q1", "_q3")]
        assert faster == (["3.000", "2.500", "3.500"] if compared else [""] * 3)  # of 4, 2 and 3
        if row["source"] == ours and row["network"] == V1:
            rates = [row[f"images_per_s{quartile}"] for quartile in ("", "_q1", "_q3")]
            assert rates == ["4.00", "2.67", "5.33"]  # two images in 0.5, 0.75 and 0.375 seconds
            assert float(row["matmul_share"]) == pytest.approx(float(row["gflop"]) / 0.5, abs=1e-3)
            if task == "inference":
                assert float(row["gflop"]) == pytest.approx(
                    2 * 2 * count(V1, 64, 64, optimized=True)[1] / 1e9, rel=1e-3
                )


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


@pytest.mark.long
def test_throughput_compiled():
    setting = throughput.Setting(task="training", mode="compiled", batch=2, size=64, networks=(V3,))
    rows = throughput.measure(setting, device="cpu", rates=RATES, rounds=1, seconds=0)
    assert all(float(row["images_per_s"]) > 0 and row["roofline_share"] == "" for row in rows)

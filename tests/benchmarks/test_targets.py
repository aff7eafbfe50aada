"""Targets: each is measured as it says. No speed is judged."""

import math
import os

import pytest
import torch
from bench_models import V2

from benchmarks import make_tables, targets
from benchmarks._peers import OPTIMIZED, OURS, TIMM, TRANSFORMERS
from benchmarks._results import newest, read


def aims(*whats):
    return [targets.Target("cpu", what, V2, 2, peer, ratio) for what, peer, ratio in whats]


def test_targets_in_torch(monkeypatch):
    """Ours takes a millisecond, the others three; in their other layout six."""
    pytest.importorskip("transformers")

    def seconds(calls, **_):
        return {
            key: [0.001] * 2 if key[0] in (OURS, OPTIMIZED) else [0.003 * (1 + ("last" in key[1]))] * 2 for key in calls
        }

    monkeypatch.setattr(targets, "interleave", seconds)
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
    for row in rows[:4]:
        assert (float(row["ours"]), float(row["peer_figure"]), row["unit"]) == (1.0, 3.0, "ms")
        assert (row["ratio"], row["ratio_q1"], row["ratio_q3"]) == ("3.000",) * 3
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

"""Exported files in their runtimes: rows are complete. No speed is judged."""

import pytest
from bench_models import smallest

from benchmarks import make_tables, runtimes
from benchmarks._peers import OURS, TIMM
from benchmarks._results import newest, read


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
    assert f"| `{smallest('v1')}` | ONNX | ours |" in make_tables.exported()


def test_exported_files_refuse(command):
    for arguments, message in (
        (("--network", "resnet18"), "expected models that"),
        (("--formats", "onnx,tflite"), "got tflite"),
    ):
        result = command(runtimes.main, *arguments)
        assert result.exit_code == 2
        assert message in result.output

"""Exports, their times and their accuracy: rows are complete, and a fault stands in its row. No speed is judged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from bench_models import V1, V2, V3
from timm.data import resolve_data_config

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from benchmarks import ablation, digits, exports
from benchmarks._apart import Times
from benchmarks._peers import OURS, TIMM
from benchmarks._results import file_name, read
from benchmarks.digits_data import write_digits

SIZE = 64
SHALLOW = pytest.mark.usefixtures("shallow_models")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(exports, "SIZE", SIZE)


def keys(name, formats, forms):
    return list(exports.wanted(exports.untrained(name), formats, forms))


def test_formats_have_the_forms_that_they_take():
    everything = (*exports.TORCH_FORMS, *exports.FORMS)
    found = keys(V3, ("torch", "onnx", "ncnn", "executorch"), everything)
    assert found == [
        *((OURS, "torch", form) for form in ("plain", "optimized", "optimized, bf16", "compiled")),
        *((OURS, "onnx", form) for form in exports.FORMS),
        *((OURS, "ncnn", form) for form in ("fp32", "fp16")),
        *((OURS, "executorch", form) for form in ("fp32", "fp16", "int8")),
    ]
    timms = [key for key in keys(V2, ("torch", "onnx", "ncnn"), everything) if key[0] == TIMM]
    assert timms == [(TIMM, "torch", "plain"), (TIMM, "torch", "compiled"), (TIMM, "onnx", "fp32")]


@SHALLOW
def test_a_file_that_equals_pytorch_is_a_yes(tmp_path, monkeypatch):
    written = []
    export = exports.export_model
    monkeypatch.setattr(
        exports, "export_model", lambda *args, **options: written.append(options) or export(*args, **options)
    )
    rows = exports.measure(exports.untrained(V3), keys(V3, ["onnx"], ["fp32", "fp16"]), tmp_path, rounds=0, seconds=0)
    assert [(row["form"], row["result"], row["ms"], row["accuracy"]) for row in rows] == [
        ("fp32", "yes", "", ""),
        ("fp16", "yes", "", ""),
    ]
    assert float(rows[1]["mib"]) < 0.6 * float(rows[0]["mib"])
    assert "onnxruntime" in rows[0]["packages"]
    common = {"dynamic_batch": False, "dynamic_size": False, "input_size": (3, SIZE, SIZE)}
    assert written == [{"half": False, **common}, {"half": True, **common}]


def test_a_fault_stands_in_its_row(tmp_path, monkeypatch):
    def fail(network, path, to, **options):
        if options.get("half"):
            raise RuntimeError("the file differs\nand more")
        if "calibration" in options:
            assert len(list(Path(options["calibration"]).iterdir())) == 8
            raise ImportError("needs another package")
        path.write_bytes(bytes(2**20))

    monkeypatch.setattr(exports, "export_model", fail)
    rows = exports.measure(
        exports.untrained(V3), keys(V3, ["onnx"], ["fp32", "fp16", "int8"]), tmp_path, rounds=0, seconds=0
    )
    assert [(row["form"], row["result"], row["mib"]) for row in rows] == [
        ("fp32", "yes", "1.00"),
        ("fp16", "RuntimeError: the file differs", ""),
    ]


def test_times_are_of_one_thread_and_of_all(tmp_path, monkeypatch):
    """Each call gives the logits of the same network, and one thread takes 2 ms, all of them 1."""
    threads = []

    def interleave_apart(executors, makers, *, rounds, seconds):
        (count,) = {make.args[-1] for make in makers.values()}
        threads.append(count)
        outputs = {key: np.asarray(make()()) for key, make in makers.items() if key[2] != "compiled"}
        return Times({key: [0.002 / len(threads)] * 3 for key in makers}, outputs, {})

    monkeypatch.setattr(exports, "interleave_apart", interleave_apart)
    monkeypatch.setattr(exports, "all_threads", lambda: 2)
    monkeypatch.setattr(exports, "prepare", lambda *_: None)
    wanted = keys(V1, ["torch", "onnx"], ["plain", "optimized", "optimized, bf16", "fp32"])
    rows = exports.measure(exports.untrained(V1), wanted, tmp_path, rounds=3, seconds=0)
    assert threads == [1, 2]
    assert [tuple(row[name] for name in ("source", "format", "form")) for row in rows] == wanted
    assert {(row["ms"], row["ms_q1"], row["ms_q3"], row["ms_all_threads"]) for row in rows} == {
        ("2.00", "2.00", "2.00", "1.00")
    }


def test_forms_of_pytorch_are_different():
    outputs = {
        form: exports.open_call(V3, OURS, form, None, (SIZE, SIZE), torch.get_num_threads())()
        for form in ("plain", "optimized", "optimized, bf16")
    }
    exact = outputs["plain"]
    errors = {form: float((output - exact).abs().max() / exact.std()) for form, output in outputs.items()}
    assert errors["optimized"] < 1e-4 < errors["optimized, bf16"] < 0.2


@SHALLOW
def test_trained_networks_are_evaluated(tmp_path, command, monkeypatch):
    """Two scans of each digit, and a network that was not trained: its file has its accuracy."""
    everything = write_digits(tmp_path / "all")
    for source in everything.glob("*/*"):
        target = tmp_path / "digits" / source.relative_to(everything)
        target.mkdir(parents=True)
        for scan in sorted(source.iterdir())[:2]:
            shutil.move(scan, target / scan.name)
    torch.manual_seed(0)
    model = timm.create_model(V3, num_classes=10)
    data_config = resolve_data_config({"img_size": SIZE, "crop_pct": 1.0}, model=model)
    digits.save(model, tmp_path / f"digits-{V3}", data_config, pretrained=False)
    monkeypatch.setattr(exports, "TRAINED", (V3,))
    options = ("--trained", "--data", tmp_path / "digits", "--rounds", 0, "--out", tmp_path / "out", "--format")
    result = command(exports.main, *options, "torch", "--format", "onnx", "--form", "plain", "--form", "fp32")
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / file_name("exports", "cpu")
    first = read(path)
    assert [(row["model"], row["format"], row["form"], row["metric"]) for row in first] == [
        (f"{V3}, digits", "torch", "plain", "top-1"),
        (f"{V3}, digits", "onnx", "fp32", "top-1"),
    ]
    assert float(first[0]["accuracy"]) == float(first[1]["accuracy"])
    assert float(first[0]["accuracy"]) in {5.0 * right for right in range(21)}
    # A row that is measured again replaces its own.
    monkeypatch.setattr(exports, "evaluate", lambda *_, **__: [type("Accuracy", (), {"top1": 12.5})])
    assert command(exports.main, *options, "onnx", "--form", "fp32").exit_code == 0
    assert [row["accuracy"] for row in read(path)] == [first[0]["accuracy"], "12.50"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--network", "resnet18"), "expected models that `timm-mobilevit list` shows, got resnet18"),
        (("--format", "tflite"), "got tflite"),
        (("--form", "fp8"), "got fp8"),
        (("--format", "torch", "--form", "int8"), "there is no such --form in such a --format"),
        (("--config", "config.py"), "expected both --config and --checkpoint"),
    ],
)
def test_exports_refuse(command, arguments, message):
    result = command(exports.main, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.long
def test_each_runtime_has_a_process(command, tmp_path):
    small = ("--network", V2, "--rounds", 2, "--seconds", 0, "--out", tmp_path, "--format", "torch", "--format", "onnx")
    result = command(exports.main, *small)
    assert result.exit_code == 0, result.output
    rows = {(row["source"], row["format"], row["form"]): row for row in read(tmp_path / file_name("latency", "cpu"))}
    assert len(rows) == len(exports.TORCH_FORMS) + len(exports.FORMS) + 3
    for row in rows.values():
        if row["result"] == "yes":  # eight-bit weights are refused where sums saturate
            assert 0 < float(row["ms_q1"]) <= float(row["ms"]) <= float(row["ms_q3"])
            assert float(row["ms_all_threads"]) > 0
    assert float(rows[OURS, "onnx", "int8"]["mib"]) < 0.5 * float(rows[OURS, "onnx", "fp32"]["mib"])


def test_ablation_refuses_other_models(command, tmp_path):
    result = command(ablation.main, "--network", "resnet18", "--out", tmp_path)
    assert result.exit_code == 2
    assert "expected models that `timm-mobilevit list` shows, got resnet18" in " ".join(
        result.output.replace("│", " ").split()
    )

"""The command for a GPU, on a CPU: it covers what it should, sees errors, and stops when the time is over."""

import dataclasses

import pytest
import timm
import torch
import typer
from typer.testing import CliRunner

from benchmarks import gpu, make_tables
from benchmarks._results import read
from timm_mobilevit.network import norm_act

NAME = "mobilevitv3_xxs"


def run(*arguments):
    app = typer.Typer()
    app.command()(gpu.main)
    return CliRunner().invoke(app, ["--device", "cpu", "--quick", *map(str, arguments)])


def rows_in(folder, bench):
    (file,) = folder.glob(f"{bench}_*.csv")
    return read(file)


def test_every_model_is_checked_against_the_reference():
    cases = [case for case in gpu.cases("cuda", gpu.Scale()) if case.what == "golden numbers"]
    assert [case.network for case in cases] == timm.list_models(module="mobilevit_zoo")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_golden_numbers(layout):
    figure = gpu.golden(NAME, "cpu", layout)
    assert 0 < figure.value <= figure.most


def test_a_wrong_network_is_seen(monkeypatch):
    create_model = timm.create_model

    def other(name):
        network = create_model(name)
        network.stem.norm.eps = 1e-2
        return network

    monkeypatch.setattr(gpu.timm, "create_model", other)
    case = gpu.Case("checks", NAME, "golden numbers", lambda: gpu.golden(NAME, "cpu", "nchw"))
    assert gpu.measure(case, "cpu")["passed"] == "no"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gradients_of_the_joint_step(dtype):
    figure = gpu.gradients(NAME, "cpu", "channels_last", dtype, gpu.QUICK)
    assert 0 < figure.value <= figure.most


def test_a_wrong_gradient_is_seen(monkeypatch):
    backward = norm_act._BatchNormSiLU.backward
    monkeypatch.setattr(
        norm_act._BatchNormSiLU, "backward", staticmethod(lambda ctx, grad: backward(ctx, 1.001 * grad))
    )
    figure = gpu.gradients(NAME, "cpu", "nchw", "fp32", gpu.QUICK)
    assert figure.value > figure.most


@pytest.mark.parametrize("joint", [False, True])
def test_training_lowers_the_loss_without_a_nan(monkeypatch, joint):
    monkeypatch.setattr(gpu, "STEPS", 3)
    figure = gpu.training(NAME, "cpu", "bf16", gpu.QUICK, joint=joint)
    assert 0 < figure.value < figure.most


def test_a_nan_is_no_success(monkeypatch):
    monkeypatch.setattr(gpu, "STEPS", 2)
    monkeypatch.setattr(gpu, "_loss", lambda network, images, dtype: network(images).sum() * torch.nan)
    case = gpu.Case("checks", NAME, "steps", lambda: gpu.training(NAME, "cpu", "fp32", gpu.QUICK, joint=False))
    assert gpu.measure(case, "cpu")["passed"] == "no"


def test_a_case_that_fails_says_why():
    def fail():
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    row = gpu.measure(gpu.Case("forms", NAME, "compiled", fail), "cpu")
    assert row["note"] == "failed: RuntimeError: no kernel image is available for execution on the device"
    assert (row["value"], row["passed"]) == ("", "no")


def test_forms_are_timed_beside_timms_network():
    scale = dataclasses.replace(gpu.QUICK, large=(1, 64))
    assert gpu.form_error(NAME, "optimized", "cpu", scale).value < 1e-3
    assert gpu.form_speed("mobilevitv1_xxs", "optimized", "cpu", scale).ratio > 0
    assert gpu.form_speed(NAME, "optimized", "cpu", scale).ratio is None  # timm has no v3


def test_nothing_is_begun_when_the_time_is_over(tmp_path):
    result = run("--minutes", 0, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = rows_in(tmp_path, "gpu")
    assert len(rows) == len(list(gpu.cases("cpu", gpu.QUICK)))
    assert {row["note"] for row in rows} == {"not begun: the time was over"}
    assert [file.name.partition("_")[0] for file in tmp_path.iterdir()] == ["gpu"]


@pytest.mark.long
def test_everything_on_the_cpu(tmp_path):
    result = run("--minutes", 60, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = rows_in(tmp_path, "gpu")
    failed = [row for row in rows if row["passed"] == "no"]
    assert not failed
    assert all(row["value"] for row in rows)
    assert {(row["task"], row["mode"]) for row in rows_in(tmp_path, "speed")} == {
        (task, mode) for task in ("inference", "training") for mode in ("eager", "compiled")
    }


def test_an_absent_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    app = typer.Typer()
    app.command()(gpu.main)
    result = CliRunner().invoke(app, ["--device", "cuda"])
    assert result.exit_code == 2
    assert "found none" in result.output


def test_the_table_of_a_gpu(tmp_path, monkeypatch):
    assert "not measured" in make_tables.gpu()
    run("--minutes", 0, "--out", tmp_path)
    (file,) = tmp_path.glob("gpu_*.csv")
    monkeypatch.setattr(make_tables, "newest", lambda bench: {"cpu-avx2": file})
    lines = make_tables.gpu().splitlines()
    assert len([line for line in lines if line.startswith("| checks")]) > 19

"""`timm-mobilevit inspect`: what it says of a file is true, and the command that it prints converts the file."""

import json
import shlex

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.utils import CheckpointSaver
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.convert import export_state_dict

ARCH = "mobilevitv3_xxs"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def inspect(*arguments):
    result = run("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.fixture
def save(tmp_path):
    def save(content, name="mine.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("arch", VARIANTS)
def test_the_architecture_is_found_by_shapes(arch, save):
    """The twins of v3 with one layer less, too."""
    model = timm.create_model(arch, num_classes=7)
    report = inspect(save(model.state_dict()))
    assert report["architectures"] == [arch]
    assert (report["classes"], report["input_channels"], report["data_types"]) == (7, 3, ["float32"])
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arch", "source"),
    [("mobilevitv1_xxs", "cvnets"), ("mobilevitv1_xxs", "transformers"), ("mobilevitv2_0_5", "timm"), (ARCH, "cvnets")],
)
def test_layouts(arch, source, save):
    weights = export_state_dict(timm.create_model(arch).state_dict(), arch, source)
    report = inspect(save(weights))
    assert (report["layout"], report["architectures"], report["left_out"]) == (source, [arch], [])


def test_a_wrapped_model_in_half_precision_with_what_lies_beside_it(save):
    weights = timm.create_model(ARCH, num_classes=0, in_chans=1).half().state_dict()
    weights = {f"student.encoder.{key}": tensor for key, tensor in weights.items()}
    report = inspect(save({"state_dict": {**weights, "neck.conv.weight": torch.zeros(8, 8, 1, 1)}}))
    assert (report["entry"], report["prefix"], report["left_out"]) == ("state_dict", "student.encoder.", ["neck"])
    assert (report["classes"], report["input_channels"], report["data_types"]) == (None, 1, ["float16"])
    assert (report["trainer"], report["averaged"]) == ("", "unknown")


def test_the_command_converts_the_file(tmp_path, monkeypatch):
    """A file of timm's own trainer, with an average."""
    model = timm.create_model(ARCH, num_classes=5)
    average = timm.create_model(ARCH, num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = timm.utils.ModelEmaV3(average)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0, metric=1.0)
    report = inspect(tmp_path / "last.pth.tar")
    assert (report["trainer"], report["entry"], report["averaged"]) == ("timm", "state_dict_ema", "yes")
    monkeypatch.chdir(tmp_path)
    result = run(*shlex.split(report["convert"])[1:])
    assert result.exit_code == 0, result.output
    converted = load_file(tmp_path / "last" / "model.safetensors")
    expected = ema.module.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_two_models_in_a_file(save):
    one, other = (timm.create_model(ARCH).state_dict() for _ in range(2))
    file = save({f"{name}.{key}": tensor for name, w in (("a", one), ("b", other)) for key, tensor in w.items()})
    result = run("inspect", file)
    assert result.exit_code == 1
    assert "several MobileViTs" in result.output
    report = inspect(file, "--prefix", "b")
    assert (report["prefix"], report["left_out"]) == ("b.", ["a"])
    assert "--prefix b" in report["convert"]


def test_text_names_each_fact(save):
    result = run("inspect", save(timm.create_model(ARCH).state_dict()))
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.output.splitlines() if " " not in line.split("  ")[0])
    assert (shown["layout"], shown["architectures"], shown["trainer"]) == ("timm", ARCH, "none")


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, {"a": 1}, [1, 2]])
def test_what_is_no_mobilevit_is_an_error(content, save):
    result = run("inspect", save(content))
    assert result.exit_code == 1
    assert "mine.pth" in result.output
    assert "Traceback" not in result.output

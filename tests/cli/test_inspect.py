"""`timm-mobilevit inspect`: what it says of a file is true, and the command that it prints converts the file."""

import argparse
import json
import shlex

import pytest
import timm
import torch
from random_weights import randomise
from safetensors.torch import load_file, save_file
from timm.utils import CheckpointSaver
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.variants import VARIANTS

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


LAYOUTS = [
    (arch, source)
    for source, archs in {
        "cvnets": ("mobilevitv1_xxs", "mobilevitv2_0_5", "mobilevitv3_xxs", "mobilevitv3_0_5"),
        "transformers": ("mobilevitv1_xxs", "mobilevitv2_0_5"),
        "mmpretrain": ("mobilevitv1_xxs",),
        "timm": ("mobilevitv1_xxs", "mobilevitv2_0_5", "mobilevitv3_xxs", "mobilevitv3_0_5"),
    }.items()
    for arch in archs
]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("arch", "source"), LAYOUTS)
def test_what_is_suggested_works(arch, source, channels, tmp_path, monkeypatch):
    """Of safetensors, whose names are sorted: the stem is not the first kernel in them."""
    monkeypatch.chdir(tmp_path)
    model = randomise(timm.create_model(arch, num_classes=7, in_chans=channels))
    order = "rgb" if channels != 3 else None
    weights = export_state_dict(model.state_dict(), arch, source, order)
    save_file({key: value.contiguous() for key, value in weights.items()}, "mine.safetensors")
    report = inspect("mine.safetensors")
    assert (report["architectures"], report["layout"]) == ([arch], source)
    assert (report["classes"], report["input_channels"], report["refused"]) == (7, channels, None)
    result = run(*shlex.split(report["convert"])[1:])
    assert result.exit_code == 0, result.output
    converted = load_file("mine/model.safetensors")
    assert all(torch.equal(converted[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("-dash.pth", ()),
        (".hidden.pth", ()),
        ("two words.pth.tar", ()),
        ("digits_ncnn.pth", ()),
        ("taken.pth", ()),
        ("taken.safetensors", ()),
        ("student.pth", ("--prefix", "student")),
        ("entry.pth", ("--entry", "mine")),
    ],
)
def test_whatever_the_file_is_called(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "taken_converted").write_text("mine too")
    model = timm.create_model(ARCH, num_classes=2)
    content = model.state_dict()
    if "--prefix" in options:
        content = {f"{who}.{key}": value for who in ("student", "teacher") for key, value in content.items()}
    if "--entry" in options:
        content = {"mine": content, "other": content}
    save_file(content, name) if name.endswith(".safetensors") else torch.save(content, name)
    report = inspect(tmp_path / name if name[0] != "-" else f"./{name}", *options)
    command = shlex.split(report["convert"])
    assert all(option in command for option in options)
    result = run(*command[1:])
    assert result.exit_code == 0, result.output
    assert torch.equal(load_file(f"{command[-1]}/model.safetensors")["head.fc.weight"], model.head.fc.weight)
    assert (tmp_path / "taken_converted").read_text() == "mine too"
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]


def test_several_architectures_fit_a_part(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = timm.create_model(ARCH).state_dict()
    part = {
        key: value for key, value in weights.items() if key.startswith(("stem", "stages.0", "stages.1", "stages.2"))
    }
    report = inspect(save(part))
    assert report["architectures"] == ["mobilevitv3_xxs", "mobilevitv3_xxs_l2"]
    result = run(*shlex.split(report["convert"])[1:])
    assert result.exit_code == 0, result.output


def test_what_fits_nothing_is_named_by_both(save, tmp_path):
    """As `convert --arch` does."""
    weights = timm.create_model(ARCH).state_dict()
    weights["stages.3.1.conv_kxk.conv.weight"] = torch.zeros(80, 1, 5, 5)
    weights["stages.4.9.extra.weight"] = weights.pop("stages.2.0.conv1_1x1.conv.weight")
    file = save(weights)
    told = (
        "missing stages.2.0.conv1_1x1.conv.weight; unknown or wrong shape "
        "stages.3.1.conv_kxk.conv.weight [80, 1, 5, 5], stages.4.9.extra.weight [48, 24, 1, 1]"
    )
    report = inspect(file)
    assert (report["architectures"], report["convert"]) == ([], None)
    assert f"the closest is {ARCH}: {told}" in report["refused"]
    assert "refused" in run("inspect", file).stdout
    for options in ((), ("--arch", ARCH)):
        result = run("convert", file, "--out", tmp_path / "out", *options)
        assert result.exit_code == 1
        assert told in result.stderr
        assert ARCH in result.stderr


def test_heads_that_convert_refuses_are_not_suggested(save):
    """Kinds of faults that the shapes of an architecture do not tell."""
    weights = timm.create_model(ARCH, num_classes=3).state_dict()
    report = inspect(save(weights | {"head.fc.bias": torch.zeros(5)}))
    assert report["convert"] is None
    assert "head.fc.weight is for 3 classes, but head.fc.bias for 5" in report["refused"]
    one = {key: value for key, value in weights.items() if key != "head.fc.bias"}
    report = inspect(save(one))
    assert report["convert"] is None
    assert "missing head.fc.bias" in report["refused"]


def test_entries_with_what_is_known_of_them(tmp_path):
    """Both are shown, so that one can be chosen."""
    raw, average = (randomise(timm.create_model(ARCH, num_classes=2)) for _ in range(2))
    for model, batches in ((raw, 480), (average, 470)):
        for module in model.modules():
            if hasattr(module, "num_batches_tracked"):
                module.num_batches_tracked.fill_(batches)
    ema = timm.utils.ModelEmaV3(average)
    options = argparse.Namespace(model=ARCH, model_ema_decay=0.9998)
    saver = CheckpointSaver(
        raw,
        torch.optim.SGD(raw.parameters(), lr=0.1),
        args=options,
        model_ema=ema,
        checkpoint_dir=tmp_path,
        recovery_dir=tmp_path,
    )
    saver.save_checkpoint(29, metric=91.5)
    report = inspect(tmp_path / "last.pth.tar")
    assert {key: report[key] for key in ("epoch", "step", "metric", "decay")} == {
        "epoch": 29,
        "step": None,
        "metric": 91.5,
        "decay": 0.9998,
    }
    assert report["entries"] == [
        {"entry": "state_dict_ema", "averaged": "yes", "taken": True, "updates": None, "batches": 470},
        {"entry": "state_dict", "averaged": "no", "taken": False, "updates": None, "batches": 480},
    ]
    other = inspect(tmp_path / "last.pth.tar", "--entry", "state_dict")
    assert (other["trainer"], other["entry"], other["averaged"]) == ("timm", "state_dict", "no")
    assert [(one["entry"], one["taken"]) for one in other["entries"]] == [
        ("state_dict", True),
        ("state_dict_ema", False),
    ]
    lines = run("inspect", tmp_path / "last.pth.tar").stdout.splitlines()
    assert "weights in        state_dict_ema, averaged, 470 batches, taken" in lines
    assert "                  state_dict, raw, 480 batches, --entry state_dict takes them" in lines
    assert "decay             0.9998" in lines


def test_numbers_of_any_kind_stay_json(save):
    weights = timm.create_model(ARCH).state_dict()
    content = {"state_dict": weights, "epoch": float("nan"), "metric": float("inf"), "arch": ARCH, "version": 2}
    report = inspect(save(content))
    assert (report["epoch"], report["metric"]) == (None, None)
    report = inspect(save(content | {"epoch": torch.tensor(3), "metric": [1], "global_step": 10**30}))
    assert (report["epoch"], report["metric"], report["step"]) == (3, None, None)

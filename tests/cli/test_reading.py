"""What commands answer from: all parameters come from the file, which entry is said, and no answer is NaN."""

import json
import shutil
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from export_models import shallow_zoo
from PIL import Image
from random_weights import randomise
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.cli._checkpoint import fixed_seed, load_model
from timm_mobilevit.cli._images import classify
from timm_mobilevit.evaluate import evaluate

ARCH = "mobilevitv3_xxs"
CLASSES = ["cat", "dog", "eel"]
SIZE = 64


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True, scope="module")
def shallow_models():
    with shallow_zoo():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """One folder per class, of one image."""
    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for name in CLASSES:
        (folder / name).mkdir()
        Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / name / "0.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint as timm's train.py writes it, with raw and averaged weights, and both models."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    raw, average = (randomise(timm.create_model(ARCH, num_classes=len(CLASSES))) for _ in range(2))
    ema = ModelEmaV3(average)
    saver = CheckpointSaver(
        raw, torch.optim.SGD(raw.parameters(), lr=0.1), model_ema=ema, checkpoint_dir=folder, recovery_dir=folder
    )
    saver.save_checkpoint(7, metric=81.25)
    return folder / "last.pth.tar", raw, average


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    assert run("convert", trained[0], "--arch", ARCH, "--out", out, "--img-size", SIZE).exit_code == 0
    return out


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "model")


def commands(images, out):
    """Every command that answers from weights, without those."""
    return {
        "predict": ("predict", images),
        "evaluate": ("evaluate", images, "--workers", 0),
        "attention": ("attention", images / "cat" / "0.png", "--out", out / "maps"),
        "export": ("export", "onnx", "--static", "--out", out / "model.onnx"),
    }


def call(command, images, out, checkpoint, *options):
    arguments = [*commands(images, out)[command], *options]
    if checkpoint.is_dir() and command == "export":
        return run(*arguments[:2], checkpoint, *arguments[2:])
    if not checkpoint.is_dir():
        arguments += ["--img-size", SIZE]
        arguments += [ARCH] if command == "export" else ["--model", ARCH]
    return run(*arguments, "--checkpoint", checkpoint)


COMMANDS = ("predict", "evaluate", "attention", "export")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", [("num_classes",), ("model_args", "num_classes"), ("pretrained_cfg", "std")])
def test_no_command_answers_from_a_folder_that_contradicts_itself(path, command, images, folder, tmp_path):
    if command == "export":
        pytest.importorskip("onnxscript")
    config = json.loads((folder / "config.json").read_text())
    place = config[path[0]] if len(path) > 1 else config
    place[path[-1]] = 5 if path[-1] == "num_classes" else [0, 1, 1]
    (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    result = call(command, images, out, folder)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert ".".join(path) in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(out.iterdir()) == []


def test_features_and_arguments_of_the_model(images, folder):
    sound = json.loads((folder / "config.json").read_text())
    for change, told in (
        ({"num_features": 128}, "config.json says 128 in num_features, but the weights have 512"),
        (
            {"model_args": {**sound["model_args"], "patch_size": "ten"}},
            "model_args in .*config.json .*patch_size must be",
        ),
        ({"model_args": {**sound["model_args"], "act_layer": "sillu"}}, "model_args in .*config.json .*sillu"),
        (
            {"model_args": {**sound["model_args"], "widths": 3}},
            "model_args in .*config.json .*unexpected keyword argument 'widths'",
        ),
    ):
        (folder / "config.json").write_text(json.dumps(sound | change))
        result = run("predict", images, "--checkpoint", folder)
        assert (result.exit_code, result.stdout) == (1, "")
        with pytest.raises(ValueError, match=told):
            load_model("", folder, True)


def test_a_backbone_in_a_folder_has_its_own_stages_only(tmp_path):
    """Nothing stands in for the stages that its file does not have."""
    whole = randomise(timm.create_model(ARCH))
    weights = {
        key: value for key, value in whole.state_dict().items() if not key.startswith(("stages.4", "final", "head"))
    }
    torch.save(weights, tmp_path / "backbone.pth")
    assert run("convert", tmp_path / "backbone.pth", "--arch", ARCH, "--out", tmp_path / "out").exit_code == 0
    loaded = load_model("", tmp_path / "out", True)
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in weights.items())
    assert loaded.num_classes == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_raw_and_averaged_weights(command, images, trained, tmp_path):
    """One line on stderr says which are taken; the other ones give another answer."""
    if command == "export":
        pytest.importorskip("onnxscript")
    file, raw, average = trained
    answers = {}
    for options, kind, entry, other in (
        ((), "averaged", "state_dict_ema", "state_dict"),
        (("--entry", "state_dict"), "raw", "state_dict", "state_dict_ema"),
    ):
        out = tmp_path / kind
        out.mkdir()
        result = call(command, images, out, file, *options)
        assert result.exit_code == 0, result.output
        (line,) = (line for line in result.stderr.splitlines() if "weights are taken" in line)
        assert line.startswith(f"{file}: the {kind} weights are taken, from {entry}; --entry {other} takes the ")
        answers[kind] = (result.stdout, *(path.read_bytes() for path in sorted(out.rglob("*.*")) if path.is_file()))
    if command == "predict":
        for kind, model in (("raw", raw), ("averaged", average)):
            labels = [line.split()[-1] for line in answers[kind][0].splitlines() if "%" in line][:: len(CLASSES)]
            x = torch.stack([_tensor(images / name / "0.png") for name in CLASSES])
            assert labels == [str(i) for i in model(x).argmax(1).tolist()]
    else:
        assert answers["raw"] != answers["averaged"]


def _tensor(path):
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(ARCH).to_dict(), args={"img_size": SIZE}
    )
    return timm.data.create_transform(**config)(Image.open(path))


def test_entries_belong_to_files(images, converted, trained):
    for arguments, code in (
        (("predict", images, "--checkpoint", converted, "--entry", "state_dict"), 1),
        (("evaluate", images, "--model", ARCH, "--entry", "state_dict"), 1),
        (("export", "onnx", ARCH, "--entry", "state_dict", "--out", "x.onnx"), 2),
        (("predict", images, "--model", ARCH, "--checkpoint", trained[0], "--entry", "model_ema"), 1),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert "--entry" in result.stderr or "has no entry model_ema" in result.stderr


def test_variances_below_zero_are_refused(images, trained, tmp_path):
    _, raw, _ = trained
    weights = raw.state_dict()
    weights["stages.2.1.conv_fusion.bn.running_var"] = -weights["stages.2.1.conv_fusion.bn.running_var"]
    torch.save(weights, tmp_path / "negative.pth")
    for result in (
        *(
            call(command, images, tmp_path, tmp_path / "negative.pth")
            for command in ("predict", "evaluate", "attention")
        ),
        run("inspect", tmp_path / "negative.pth"),
        run("convert", tmp_path / "negative.pth", "--out", tmp_path / "out"),
    ):
        assert (result.exit_code, result.stdout) == (1, "")
        assert "stages.2.1.conv_fusion.bn.running_var has negative values" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["negative.pth"]


@pytest.mark.parametrize("command", ["predict", "evaluate", "attention"])
@pytest.mark.parametrize("as_json", [False, True])
def test_outputs_that_are_not_finite(as_json, command, images, trained, tmp_path):
    """Of weights that are finite themselves."""
    if as_json and command == "attention":
        pytest.skip("it draws")
    _, raw, _ = trained
    large = "head.fc.weight" if command != "attention" else "stages.2.1.transformer.0.attn.qkv.weight"
    weights = raw.state_dict()
    torch.save(weights | {large: weights[large] * 1e38}, tmp_path / "large.pth")
    options = ("--json",) if as_json else ()
    result = call(command, images, tmp_path, tmp_path / "large.pth", *options)
    assert result.exit_code == 1, result.output
    assert "not finite" in (result.stdout if as_json and command == "predict" else result.stderr)
    assert str(images / "cat" / "0.png") in result.output
    assert "nan" not in result.output.lower()
    assert "infinity" not in result.output.lower()
    if as_json and command == "predict":
        found = json.loads(result.stdout, parse_constant=pytest.fail)["predictions"]
        assert [set(entry) for entry in found] == [{"image", "error"}] * len(CLASSES)
    assert not (tmp_path / "maps").exists()


class Model(nn.Module):
    """What timm's tools need to know of a model."""

    num_classes = 3
    pretrained_cfg: ClassVar = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 1.0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_the_image_is_named_and_the_others_go_on(wrong, tmp_path):
    class Bright(Model):
        def forward(self, x):
            mean = x.mean((1, 2, 3))[:, None]
            logits = mean * torch.tensor([0.0, 1.0, 2.0])
            logits[:, 0] = torch.where(mean[:, 0] > 0.5, wrong, logits[:, 0])
            return logits

    shades = {"cat": 10, "dog": 200, "eel": 30}
    for name, shade in shades.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / name / "0.png")
    files = [tmp_path / name / "0.png" for name in shades]
    for batch_size in (1, 3):
        found = list(classify(Bright(), files, CLASSES, batch_size=batch_size))
        assert [len(one.get("top", ())) for one in found] == [3, 0, 3]
        assert ["not finite" in one.get("error", "") for one in found] == [False, True, False]
        with pytest.raises(ValueError, match=f"outputs for {files[1]} are not finite"):
            evaluate(Bright(), tmp_path, batch_size=batch_size, workers=0)


def test_a_loss_that_is_not_finite_is_no_result(tmp_path):
    class Far(Model):
        def forward(self, x):
            return torch.tensor([[3e38, -3e38, -3e38]]).expand(len(x), -1)

    for name in CLASSES:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match="their loss is not finite"):
        evaluate(Far(), tmp_path, workers=0)


def test_random_weights_are_the_same_each_time_and_draw_from_no_one(images):
    before = torch.get_rng_state()
    one = load_model(ARCH, None, False).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    other = load_model(ARCH, None, False).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    with fixed_seed():
        assert not torch.equal(torch.rand(3), torch.zeros(3))
    first, second = (
        run("predict", images / "cat", "--model", ARCH, "--no-pretrained", "--img-size", SIZE) for _ in "ab"
    )
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout


def test_random_weights_of_an_export(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    written = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        file = tmp_path / f"{seed}.onnx"
        result = run("export", "onnx", ARCH, "--random-weights", "--static", "--img-size", SIZE, "--out", file)
        assert result.exit_code == 0, result.output
        written.append({tensor.name: tensor.raw_data for tensor in onnx.load(file).graph.initializer})
    assert written[0] == written[1]
    assert sum(map(len, written[0].values())) > 1e6

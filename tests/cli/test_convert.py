"""`timm-mobilevit convert`."""

import argparse
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import push_to_hf_hub
from timm.utils import CheckpointSaver
from torch.testing import assert_close
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.cli.convert import ChannelOrder
from timm_mobilevit.cli.convert import Source as Choice
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.convert.layouts import ChannelOrder as KnownOrder
from timm_mobilevit.convert.layouts import Source
from timm_mobilevit.weights.pretrained import WEIGHTS

ARCH = "mobilevitv3_xxs"
FILES = {"model.safetensors", "config.json"}
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def run(*args):
    return CliRunner().invoke(app, ["convert", *(str(arg) for arg in args)])


def convert(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@torch.inference_mode()
def logits(model, x=X):
    return model.eval()(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model(ARCH, num_classes=10)


@pytest.fixture
def cvnets_file(model, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    torch.save(export_state_dict(model.state_dict(), ARCH, "cvnets"), folder / "checkpoint_ema_best.pt")
    return folder / "checkpoint_ema_best.pt"


def test_converted_directory_gives_equal_logits(model, cvnets_file, tmp_path):
    out = tmp_path / "new" / "out"
    assert "parameters, 10 classes" in convert(cvnets_file, "--arch", ARCH, "--out", out).stdout
    assert names_in(out) == FILES
    assert names_in(out.parent) == {"out"}
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_config_has_the_preprocessing_of_the_architecture_and_no_borrowed_licence(cvnets_file, tmp_path):
    convert(cvnets_file, "--arch", ARCH, "--out", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    row = WEIGHTS[f"{ARCH}.micron_in1k"]
    cfg = config["pretrained_cfg"]
    assert (config["architecture"], config["num_classes"]) == (ARCH, 10)
    assert (cfg["input_size"], cfg["crop_pct"], cfg["interpolation"]) == ([3, 256, 256], row.crop, row.interpolation)
    assert (cfg["mean"], cfg["std"]) == ([0, 0, 0], [1, 1, 1])
    assert not {"license", "origin_url", "tag"} & cfg.keys()


def test_a_tag_brings_its_channel_order_licence_and_origin(tmp_path):
    arch, tag = "mobilevitv1_s", "cvnets_rangeaugment_in1k"
    model = timm.create_model(arch)
    torch.save(export_state_dict(model.state_dict(), arch, "cvnets", channel_order="rgb"), tmp_path / "small.pt")
    convert(tmp_path / "small.pt", "--arch", arch, "--tag", tag, "--out", tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    row = WEIGHTS[f"{arch}.{tag}"]
    assert (cfg["tag"], cfg["license"], cfg["origin_url"]) == (tag, row.license, row.origin)
    stem = load_file(tmp_path / "out" / "model.safetensors")["stem.conv.weight"]
    assert torch.equal(stem, model.stem.conv.weight)  # this file is RGB, unlike the other v1 files


@pytest.mark.parametrize("order", get_args(ChannelOrder))
def test_channel_order_overrides_the_known_one(model, tmp_path, order):
    torch.save(model.state_dict(), tmp_path / "own.pth")
    convert(
        *(tmp_path / "own.pth", "--arch", ARCH, "--out", tmp_path / "out"),
        *("--source", "timm", "--channel-order", order),
    )
    stem = load_file(tmp_path / "out" / "model.safetensors")["stem.conv.weight"]
    expected = model.stem.conv.weight
    assert torch.equal(stem, expected.flip(1) if order == "bgr" else expected)


def test_choices_are_those_of_the_library():
    assert get_args(Choice) == ("auto", *get_args(Source))
    assert get_args(ChannelOrder) == get_args(KnownOrder)


def test_training_checkpoint_with_labels_and_image_size(tmp_path):
    model = timm.create_model(ARCH, num_classes=3, in_chans=1)
    raw = timm.create_model(ARCH, num_classes=3, in_chans=1)
    saver = CheckpointSaver(  # what timm's train.py uses
        raw,
        torch.optim.SGD(raw.parameters(), lr=0.1),
        args=argparse.Namespace(model=ARCH, lr=0.1),
        model_ema=argparse.Namespace(module=model),
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=7, metric=97.5)
    (tmp_path / "classes.txt").write_text("zero\none\ntwo\n")
    convert(
        *(tmp_path / "model_best.pth.tar", "--arch", ARCH, "--out", tmp_path / "out"),
        *("--labels", tmp_path / "classes.txt", "--img-size", 64, "--crop-pct", 1),
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == ["zero", "one", "two"]
    assert config["pretrained_cfg"]["input_size"] == [1, 64, 64]
    assert config["pretrained_cfg"]["crop_pct"] == 1
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_close(logits(loaded, X[:, :1]), logits(model, X[:, :1]), rtol=0, atol=0)


def test_backbone_without_classifier(model, tmp_path):
    backbone = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    out = tmp_path / "out"
    assert "no classifier" in convert(tmp_path / "backbone.pth", "--arch", ARCH, "--out", out).stdout
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
    model.reset_classifier(0)
    assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert logits(timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=7)).shape == (2, 7)


def test_what_timms_training_was_told_counts(tmp_path):
    """Of its options, those that its own evaluation depends on and the weights do not show."""
    model = timm.create_model(ARCH, num_classes=3, act_layer="relu", patch_size=4)
    torch.nn.init.normal_(model.head.fc.weight)
    options = argparse.Namespace(
        model=ARCH, img_size=64, mean=[0.25], std=[0.5, 0.25, 0.125], crop_pct=1.0, interpolation="bicubic", gp="max",
        model_kwargs={"act_layer": "relu", "patch_size": 4, "checkpoint_path": "/else.pth"},
    )  # fmt: skip
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), args=options, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=7, metric=97.5)
    args = (tmp_path / "last.pth.tar", "--arch", ARCH)
    assert "taken from its training: input_size (3, 64, 64)" in convert(*args, "--out", tmp_path / "out").output
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    cfg = loaded.pretrained_cfg
    assert [list(cfg[key]) for key in ("input_size", "mean", "std")] == [[3, 64, 64], [0.25] * 3, [0.5, 0.25, 0.125]]
    assert (cfg["crop_pct"], cfg["interpolation"]) == (1.0, "bicubic")
    model.reset_classifier(0, "")
    expected = model.eval()(X).amax((2, 3)) @ loaded.head.fc.weight.T + loaded.head.fc.bias
    assert_close(logits(loaded), expected)
    convert(*args, "--out", tmp_path / "other", "--img-size", 96, "--crop-pct", 0.5)  # options say more
    cfg = json.loads((tmp_path / "other" / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["input_size"], cfg["crop_pct"], cfg["mean"]) == ([3, 96, 96], 0.5, [0.25] * 3)


def test_directory_can_be_pushed_to_the_hub(model, cvnets_file, tmp_path, monkeypatch):
    class Hub:
        """Stands in for the service: keeps what is uploaded."""

        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return argparse.Namespace(repo_id=repo_id)

        def file_exists(self, **_):
            return False

        def upload_folder(self, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr("timm.models._hub.HfApi", Hub)
    convert(cvnets_file, "--arch", ARCH, "--out", tmp_path / "out")
    push_to_hf_hub(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), "somebody/digits")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_what_is_there_is_not_overwritten_unasked(cvnets_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert(cvnets_file, "--arch", ARCH, "--out", out)  # an empty directory is fine
    (out / "README.md").write_text("mine")
    (out / "config.json").write_text("old")
    result = run(cvnets_file, "--arch", ARCH, "--out", out)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (out / "config.json").read_text() == "old"
    convert(cvnets_file, "--arch", ARCH, "--out", out, "--force")
    assert names_in(out) == {*FILES, "README.md"}
    assert json.loads((out / "config.json").read_text())["architecture"] == ARCH


def test_a_file_as_target_is_refused(cvnets_file, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = run(cvnets_file, "--arch", ARCH, "--out", tmp_path / "out", "--force")
    assert result.exit_code == 1
    assert "is a file" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_a_failed_write_leaves_nothing_behind(cvnets_file, tmp_path, monkeypatch):
    def fail(model, folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("timm.models.save_for_hf", fail)
    result = run(cvnets_file, "--arch", ARCH, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr == "error: no space left on device\n"
    assert names_in(tmp_path) == {"files"}


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_files_that_cannot_be_converted(model, cvnets_file, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "truncated.pt").write_bytes(cvnets_file.read_bytes()[:100_000])
    torch.save({"state_dict": Bomb(tmp_path / "exploded")}, folder / "hostile.pt")
    torch.save({"fc.weight": torch.zeros(10, 512)}, folder / "stranger.pt")
    torch.save({**model.state_dict(), "head.fc.bias": torch.zeros(9)}, folder / "odd.pt")
    expected = {
        "truncated.pt": "damaged",
        "hostile.pt": "run code",
        "stranger.pt": "fc.weight",
        "odd.pt": "head.fc.bias",
        "missing.pt": "no checkpoint file",
    }
    for name, message in expected.items():
        result = run(folder / name, "--arch", ARCH, "--out", tmp_path / "out")
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert message in result.stderr
        assert name in result.stderr
        assert result.stderr.count("\n") == 1
    assert names_in(tmp_path) == {"bad", "files"}


def test_another_architecture_names_the_one_that_fits(cvnets_file, tmp_path):
    result = run(cvnets_file, "--arch", "mobilevitv3_xs", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert ARCH in result.stderr
    assert "checkpoint_ema_best.pt" in result.stderr


def test_published_weights_have_as_many_classes_as_published(cvnets_file, tmp_path):
    result = run(cvnets_file, "--arch", ARCH, "--tag", "micron_in1k", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "1000 classes" in result.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_tag(cvnets_file, tmp_path):
    result = run(cvnets_file, "--arch", ARCH, "--tag", "cvnets_in1k", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "micron_in1k" in result.stderr

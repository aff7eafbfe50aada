"""What detectors and segmentors answer from: all parameters come from the file, which entry is said, and no NaN."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("mmdet")

from random_weights import randomise

from timm_mobilevit.cli import app
from timm_mobilevit.cli._checkpoint import load_dense
from timm_mobilevit.configs import find_config
from timm_mobilevit.export.mm import load_exportable
from timm_mobilevit.mm.loading import load_model

NAMES = {"detector": "ssdlite_mobilevitv3-xxs", "segmentor": "deeplabv3_mobilevitv3-0.5-d16"}
CHANGES = {"detector": "test_cfg=dict(score_thr=0.0, nms_pre=9, max_per_img=12)", "segmentor": ""}
HEADS = {"detector": "bbox_head.predictors.0.1.weight", "segmentor": "decode_head.conv_seg.weight"}


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module", params=list(NAMES))
def network(request, tmp_path_factory):
    """What kind it is, its config, and random weights."""
    kind = request.param
    file = tmp_path_factory.mktemp("configs") / f"{kind}.py"
    file.write_text(f"_base_ = [{str(find_config(NAMES[kind]).resolve())!r}]\nmodel = dict({CHANGES[kind]})\n")
    torch.manual_seed(0)
    return kind, file, randomise(load_model(str(file))[0]).state_dict()


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_every_parameter_comes_from_the_file(network, image, tmp_path):
    """The first and the last of every part of the network are missed, by both commands."""
    _, config, weights = network
    parts = {}
    for key in weights:
        if not key.endswith("num_batches_tracked"):
            parts.setdefault(key.partition(".")[0], []).append(key)
    assert len(parts) >= 3
    for keys in parts.values():
        for absent in (keys[0], keys[-1]):
            torch.save({key: value for key, value in weights.items() if key != absent}, tmp_path / "part.pth")
            options = ("--config", config, "--checkpoint", tmp_path / "part.pth", "--out")
            for done in (run("predict", image, *options, tmp_path / "out"), run("export", "onnx", *options, "x.onnx")):
                assert (done.exit_code, done.stdout) == (1, "")
                assert absent in done.stderr
                assert "part.pth" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_head_of_other_classes(network, image, tmp_path):
    kind, config, weights = network
    key = HEADS[kind]
    torch.save({**weights, key: weights[key][:-1]}, tmp_path / "other.pth")
    done = run("predict", image, "--config", config, "--checkpoint", tmp_path / "other.pth", "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"size mismatch for {key}" in done.stderr


def test_outputs_that_are_not_finite(network, image, tmp_path):
    """Scores that are no numbers are below every threshold: without a look at them, nothing would be found."""
    kind, config, weights = network
    torch.save({**weights, HEADS[kind]: weights[HEADS[kind]] * 1e38}, tmp_path / "large.pth")
    options = ("--config", config, "--checkpoint", tmp_path / "large.pth", "--out", tmp_path / "out")
    done = run("predict", image, *options, "--json")
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout, parse_constant=pytest.fail)["predictions"]
    assert found.keys() == {"image", "error"}
    assert found["image"] == str(image)
    assert "not finite" in found["error"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_raw_and_averaged_weights(network, image, tmp_path):
    """As EMAHook writes them: the average is in state_dict, the raw ones in ema_state_dict."""
    kind, config, weights = network
    raw = {**weights, HEADS[kind]: weights[HEADS[kind]].flip(0)}
    ema = {"steps": torch.tensor(480), **{f"module.{key}": value for key, value in raw.items()}}
    meta = {"mmengine_version": "0.10.7", "epoch": 3, "iter": 480}
    torch.save({"meta": meta, "state_dict": weights, "ema_state_dict": ema}, tmp_path / "epoch_3.pth")
    torch.save(raw, tmp_path / "raw.pth")
    torch.save(weights, tmp_path / "average.pth")
    found = {}
    for name, options in (("raw", ()), ("average", ()), ("epoch_3", ()), ("epoch_3", ("--entry", "ema_state_dict"))):
        out = tmp_path / f"{name}{len(options)}"
        checkpoint = tmp_path / f"{name}.pth"
        done = run(
            "predict", image, "--config", config, "--checkpoint", checkpoint, "--out", out, "--min-score", 0, *options
        )
        assert done.exit_code == 0, done.output
        said = [line for line in done.stderr.splitlines() if "weights are taken" in line]
        if name == "epoch_3":
            kinds = ("raw", "ema_state_dict", "state_dict") if options else ("averaged", "state_dict", "ema_state_dict")
            (line,) = said
            assert line.startswith(
                f"{checkpoint}: the {kinds[0]} weights are taken, from {kinds[1]}; --entry {kinds[2]} "
            )
        else:
            assert said == []
        (found[out.name],) = json.loads((out / "predictions.json").read_text())["predictions"]
    assert found["epoch_30"] == found["average0"] != found["raw0"] == found["epoch_32"]


def test_random_weights_are_the_same_each_time(network):
    _, config, _ = network
    before = torch.get_rng_state()
    one, other = (load_dense(load_exportable, str(config), None, None).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, other[key]) for key, value in one.items())

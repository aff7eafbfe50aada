"""`timm-mobilevit verify`: the published weights in the cache, measured again; nothing is downloaded unasked."""

import csv
import json
import os
import re
import socket
import subprocess
import zipfile

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.configs import find_config, list_configs
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.convert import export_state_dict
from timm_mobilevit.weights.fetch import CHECKPOINT, _Entry, _Source
from timm_mobilevit.weights.pretrained import WEIGHTS

SMALLEST = sorted(WEIGHTS, key=lambda name: (WEIGHTS[name].size, VARIANTS[name.partition(".")[0]].widths))
ON_HUB = next(name for name in SMALLEST if WEIGHTS[name].hf_hub_id)
IN_RELEASE = next(name for name in SMALLEST if WEIGHTS[name].folder)


def run(*args, **kwargs):
    return CliRunner().invoke(app, ["verify", *(str(arg) for arg in args)], **kwargs)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A cache of its own, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.delenv("TIMM_MOBILEVIT_WEIGHTS", raising=False)

    # Counted, and not only refused: the hub's client takes what it has when a request fails.
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise AssertionError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder of 1000 classes, one image each."""
    folder = tmp_path_factory.mktemp("imagenet")
    for i in range(1000):
        (folder / "val" / f"n{i:08d}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (i % 256, 0, 0)).save(folder / "val" / f"n{i:08d}" / "0.png")
    return folder


def weights_of(name, answer, **options):
    """Weights with which a model finds one class in every image."""
    model = timm.create_model(name.partition(".")[0], **options)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.zeros_(model.head.fc.bias)
    model.head.fc.bias.data[answer] = 1
    return model.state_dict()


def put_on_hub(name, answer=0, content=None):
    """Put weights where the hub's client keeps what it downloaded."""
    repo = f"{constants.HF_HUB_CACHE}/models--{WEIGHTS[name].hf_hub_id.replace('/', '--')}"
    os.makedirs(f"{repo}/refs")
    os.makedirs(f"{repo}/snapshots/abc")
    with open(f"{repo}/refs/main", "w") as file:
        file.write("abc")
    if content is None:
        save_file(weights_of(name, answer), f"{repo}/snapshots/abc/model.safetensors")
    else:
        with open(f"{repo}/snapshots/abc/model.safetensors", "wb") as file:
            file.write(content)


def put_in_assets(name, tmp_path, answer=0):
    """Put weights where this package keeps what it fetched and converted."""
    (tmp_path / "original.pt").write_bytes(b"")
    entry = _Entry(name, WEIGHTS[name])
    entry.save(weights_of(name, answer), _Source(tmp_path / "original.pt", "original.pt"))


def test_every_row_in_the_cache_is_compared_with_its_published_top1(imagenet, tmp_path):
    put_on_hub(ON_HUB, answer=0)
    put_in_assets(IN_RELEASE, tmp_path, answer=500)
    args = (imagenet, "--limit", 4, "--workers", 0)  # images of classes 0, 250, 500 and 750
    result = run(*args, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["rows"]] == [name for name in WEIGHTS if name in (ON_HUB, IN_RELEASE)]
    assert set(document["absent"]) == WEIGHTS.keys() - {ON_HUB, IN_RELEASE}
    for row in document["rows"]:
        assert row["published_top1"] == WEIGHTS[row["name"]].top1
        assert (row["top1"], row["images"], row["error"]) == (25.0, 4, "")
        assert row["difference"] == pytest.approx(25.0 - WEIGHTS[row["name"]].top1)
    assert json.loads((tmp_path / "out/verify.json").read_text()) == document
    with (tmp_path / "out/verify.csv").open() as file:
        stored = list(csv.DictReader(file))
    assert [(row["name"], float(row["difference"])) for row in stored] == [
        (row["name"], row["difference"]) for row in document["rows"]
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"verify.json", "verify.csv"}

    text = run(*args, "--only", ON_HUB).stdout
    assert re.search(rf"{re.escape(ON_HUB)} +{WEIGHTS[ON_HUB].top1:.2f} +25.00 +-{WEIGHTS[ON_HUB].top1 - 25:.2f}", text)
    assert IN_RELEASE not in text


def test_each_row_has_its_own_preprocessing(imagenet, tmp_path, monkeypatch):
    put_on_hub(ON_HUB)
    sizes = []
    create = timm.create_model

    def spy(*args, **kwargs):
        model = create(*args, **kwargs)
        model.register_forward_hook(lambda module, args, out: sizes.append(tuple(args[0].shape)))
        return model

    monkeypatch.setattr(timm, "create_model", spy)
    assert run(imagenet, "--limit", 2, "--workers", 0).exit_code == 0
    assert sizes == [(2, 3, WEIGHTS[ON_HUB].size, WEIGHTS[ON_HUB].size)]


@pytest.mark.parametrize("packed", [False, True])
def test_weights_that_were_downloaded_by_hand(imagenet, tmp_path, monkeypatch, packed):
    folder = WEIGHTS[IN_RELEASE].folder
    theirs = export_state_dict(weights_of(IN_RELEASE, 250), IN_RELEASE.partition(".")[0], "cvnets")
    tree = tmp_path / "tree"
    (tree / folder).mkdir(parents=True)
    torch.save(theirs, tree / folder / CHECKPOINT)
    if packed:
        with zipfile.ZipFile(tree / "models.zip", "w") as archive:
            archive.write(tree / folder / CHECKPOINT, f"{folder}/{CHECKPOINT}")
        (tree / folder / CHECKPOINT).unlink()
    monkeypatch.setenv("TIMM_MOBILEVIT_WEIGHTS", str(tree))
    result = run(imagenet, "--limit", 4, "--workers", 0, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["name"], row["top1"]) == (IN_RELEASE, 25.0)


def test_options_of_the_measurement_arrive(imagenet, inputs, workers, tmp_path):
    put_in_assets(IN_RELEASE, tmp_path)
    result = run(imagenet, "--limit", 3, "--batch-size", 2, "--workers", 1, "--amp")
    assert result.exit_code == 0, result.output
    assert ([(len(x), half) for x, half in inputs], workers) == ([(2, True), (1, True)], [1])
    for name in ("cat", "dog"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / "train" / name / "0.png")
    (tmp_path / "data" / "val").symlink_to(imagenet / "val")
    assert "has 2 classes with images" in run(tmp_path / "data", "--split", "train").stderr
    assert "'abacus' cannot be used" in run(imagenet, "--device", "abacus").stderr


def test_damaged_weights_do_not_stop_the_others(imagenet, tmp_path):
    put_on_hub(ON_HUB, content=b"damaged")
    put_in_assets(IN_RELEASE, tmp_path)
    result = run(imagenet, "--limit", 4, "--workers", 0, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {ON_HUB}: cannot load ")
    assert result.stderr.count("\n") == 1
    assert IN_RELEASE in result.stdout
    rows = json.loads((tmp_path / "out/verify.json").read_text())["rows"]
    assert {row["name"]: bool(row["error"]) for row in rows} == {ON_HUB: True, IN_RELEASE: False}
    assert {row["name"]: row["top1"] for row in rows} == {ON_HUB: None, IN_RELEASE: 25.0}


@pytest.mark.parametrize("options", [{"num_classes": 10}, {"in_chans": 1}, {"without": "head."}])
def test_weights_of_another_shape_are_not_completed_at_random(options, imagenet, tmp_path):
    without = options.pop("without", "nothing")
    weights = weights_of(ON_HUB, 0, **options)
    put_on_hub(ON_HUB, content=save({key: value for key, value in weights.items() if not key.startswith(without)}))
    result = run(imagenet, "--only", ON_HUB, "--limit", 4, "--workers", 0, "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)["rows"]
    assert row["top1"] is None
    assert re.search(r"10 classes|(stem\.conv\.weight|head\.fc\.weight).* would stay random", row["error"])


def test_an_interruption_leaves_the_rows_before_it(imagenet, tmp_path, monkeypatch):
    put_on_hub(ON_HUB)
    put_in_assets(IN_RELEASE, tmp_path)
    create = timm.create_model

    def interrupt(name, **kwargs):
        if name == IN_RELEASE:
            raise KeyboardInterrupt
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", interrupt)
    assert run(imagenet, "--limit", 2, "--workers", 0, "--out", tmp_path / "out").exit_code != 0
    (row,) = json.loads((tmp_path / "out/verify.json").read_text())["rows"]
    assert row["name"] == ON_HUB


def test_nothing_in_the_cache(imagenet, tmp_path):
    result = run(imagenet, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"none of {len(WEIGHTS)} sets of weights is in the cache; --download fetches them" in result.stderr
    assert not (tmp_path / "out").exists()


def test_downloads_are_tried_only_if_asked_for(imagenet, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run(imagenet, "--only", IN_RELEASE, "--download")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {IN_RELEASE}: the pretrained weights {IN_RELEASE} are not available")
    assert "HF_HUB_OFFLINE is set" in result.stderr


def test_bad_calls(imagenet):
    for args, code, message in (
        ((), 2, "give DATA"),
        ((imagenet, "--commands"), 2, "give DATA"),
        ((imagenet, "--only", "resnet"), 1, "nothing matches 'resnet'"),
        (("--commands", "--only", "resnet"), 1, "no config matches 'resnet'"),
    ):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert message in result.stderr


def test_commands_test_every_detector_and_segmentor(tmp_path):
    """They run in a shell, with programs that only write down how they were called."""
    script = run("--commands").stdout
    called = tmp_path / "called"
    (tmp_path / "bin").mkdir()
    for program in ("curl", "timm-mobilevit", "python"):
        stub = tmp_path / "bin" / program
        stub.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo tools && exit\necho {program} "$@" >> {called}\n')
        stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu"], input=script, text=True, cwd=tmp_path, env=env, check=True)
    calls = called.read_text().splitlines()

    names = [path.stem for path in list_configs()]
    converted = [line.split() for line in calls if line.startswith("timm-mobilevit convert")]
    tested = [line.split() for line in calls if line.startswith("python")]
    assert sorted(call[call.index("--config") + 1] for call in converted) == sorted(names)
    assert sorted(call[-1] for call in tested) == sorted(f"verify/{name}" for name in names)
    downloaded = {line.split()[-1] for line in calls if line.startswith("curl")}
    for convert, test in zip(converted, tested, strict=True):
        name = convert[convert.index("--config") + 1]
        assert find_config(name).stem == name
        assert convert[convert.index("--out") + 1] in test
        assert convert[2] in downloaded or convert[2].endswith(f"/{CHECKPOINT}")
        published = re.search(rf"# {re.escape(name)}: (box AP|mIoU) (\S+) on", script)
        readme = (find_config(name).parents[2] / "README.md").read_text()
        assert float(published[2]) == float(re.search(rf"{re.escape(name)}\.py\) \| (\S+) \|", readme)[1])
    assert run("--commands", "--only", "pspnet").stdout.count("timm-mobilevit convert") == sum(
        name.startswith("pspnet") for name in names
    )


def test_commands_have_options_that_exist():
    script = run("--commands").stdout
    used = set(re.findall(r"(--[a-z-]+)", " ".join(re.findall(r"timm-mobilevit convert .*", script))))
    shown = CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "200"}).stdout
    assert used
    assert all(option in shown for option in used)


def test_results_are_on_the_screen_though_the_disk_is_full(imagenet, tmp_path, monkeypatch):
    put_on_hub(ON_HUB)
    put_in_assets(IN_RELEASE, tmp_path)

    def fail(*args):
        raise OSError("cannot write: no space left")

    monkeypatch.setattr("timm_mobilevit.evaluation.accuracy.write_results", fail)
    result = run(imagenet, "--limit", 2, "--workers", 0, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert all(name in result.stdout for name in (ON_HUB, IN_RELEASE))  # the first failure does not stop the second
    assert result.stderr == "error: cannot write: no space left\n"

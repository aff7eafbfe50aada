"""Published weights that are in the caches, measured; nothing is downloaded unasked."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from benchmarks import accuracy
from benchmarks._results import read
from timm_mobilevit.cli import app
from timm_mobilevit.configs import find_config, list_configs
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.fetch import CHECKPOINT
from timm_mobilevit.weights.pretrained import WEIGHTS

SMALLEST = sorted(WEIGHTS, key=lambda name: (WEIGHTS[name].size, VARIANTS[name.partition(".")[0]].widths))
ON_HUB = next(name for name in SMALLEST if WEIGHTS[name].hf_hub_id)
IN_RELEASE = next(name for name in SMALLEST if WEIGHTS[name].folder)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A cache of its own, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("TIMM_MOBILEVIT_WEIGHTS", str(tmp_path / "tree"))
    (tmp_path / "tree").mkdir()
    monkeypatch.setattr(accuracy, "prepare", lambda device, threads: None)  # of this process

    # Counted, and not only refused: the hub's client takes what it has when a request fails.
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tried


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder of 1000 classes, one image each."""
    folder = tmp_path_factory.mktemp("imagenet")
    for i in range(1000):
        (folder / "val" / f"n{i:08d}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (i % 256, 0, 0)).save(folder / "val" / f"n{i:08d}" / "0.png")
    return folder


@pytest.fixture
def run(command, tmp_path):
    def run(*args):
        result = command(accuracy.main, *args, "--workers", 0, "--out", tmp_path / "out")
        return result, [row for path in sorted((tmp_path / "out").glob("*.csv")) for row in read(path)]

    return run


def weights_of(name, answer, **options):
    """Weights with which a model finds one class in every image."""
    model = timm.create_model(name.partition(".")[0], **options)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.zeros_(model.head.fc.bias)
    model.head.fc.bias.data[answer] = 1
    return model.state_dict()


def put_on_hub(name, content):
    """Put weights where the hub's client keeps what it downloaded."""
    repo = Path(constants.HF_HUB_CACHE, f"models--{WEIGHTS[name].hf_hub_id.replace('/', '--')}")
    (repo / "refs").mkdir(parents=True)
    (repo / "snapshots/abc").mkdir(parents=True)
    (repo / "refs/main").write_text("abc")
    if isinstance(content, bytes):
        (repo / "snapshots/abc/model.safetensors").write_bytes(content)
    else:
        save_file(content, repo / "snapshots/abc/model.safetensors")


def put_in_tree(name, answer, tmp_path):
    """Put weights where a user would who downloads them by hand."""
    file = tmp_path / "tree" / WEIGHTS[name].folder / CHECKPOINT
    file.parent.mkdir()
    torch.save(export_state_dict(weights_of(name, answer), name.partition(".")[0], "cvnets"), file)


def test_what_is_here_is_compared_with_its_published_top1(imagenet, run, tmp_path, empty_cache):
    put_on_hub(ON_HUB, weights_of(ON_HUB, 0))
    put_in_tree(IN_RELEASE, 999, tmp_path)
    result, rows = run(imagenet, "--limit", 4)  # images of classes 0, 333, 666 and 999
    assert result.exit_code == 1
    assert [row["model"] for row in rows] == [name for name in WEIGHTS if name in (ON_HUB, IN_RELEASE)]
    for row in rows:
        published = WEIGHTS[row["model"]].top1
        assert (float(row["published_top1"]), float(row["top1"]), row["images"]) == (published, 25.0, "4")
        assert float(row["standard_error"]) == pytest.approx(21.65, abs=0.01)  # sqrt(0.25 · 0.75 / 4)
        line = rf"{re.escape(row['model'])} +{published:.2f} +25\.00 +-{published - 25:.2f} ± 21\.65"
        assert re.search(line, result.output)
    absent = re.findall(r"^(\S+): .", result.stderr.partition("Not measured:")[2], re.MULTILINE)
    assert set(WEIGHTS) - {ON_HUB, IN_RELEASE} <= set(absent)
    assert not empty_cache


def test_each_row_has_its_own_preprocessing(imagenet, run, monkeypatch):
    larger = next(name for name in WEIGHTS if WEIGHTS[name].hf_hub_id and WEIGHTS[name].size == 384)
    inputs = []
    for name in (ON_HUB, larger):
        put_on_hub(name, weights_of(name, 0))
    create = timm.create_model

    def spy(*args, **kwargs):
        model = create(*args, **kwargs)
        model.register_forward_hook(
            lambda module, args, out: inputs.append(
                (*args[0].shape, next(module.stages.parameters()).dtype == torch.bfloat16)
            )
        )
        return model

    monkeypatch.setattr(timm, "create_model", spy)
    for name, dtype in ((ON_HUB, ()), (larger, ("--dtype", "bfloat16"))):
        assert run(imagenet, "--limit", 3, "--batch-size", 2, "--only", name, *dtype)[0].exit_code == 0
    assert inputs == [(n, 3, size, size, half) for size, half in ((256, False), (384, True)) for n in (2, 1)]


@pytest.mark.parametrize("kind", ["damaged", "classes", "channels", "no classifier"])
def test_weights_that_cannot_be_loaded_do_not_stop_the_others(imagenet, run, tmp_path, kind):
    options = {"classes": {"num_classes": 10}, "channels": {"in_chans": 1}}.get(kind, {})
    weights = weights_of(ON_HUB, 0, **options)
    if kind == "no classifier":
        weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
    put_on_hub(ON_HUB, b"damaged" if kind == "damaged" else save(weights))
    put_in_tree(IN_RELEASE, 0, tmp_path)
    result, rows = run(imagenet, "--limit", 4)
    assert result.exit_code == 1
    assert [row["model"] for row in rows] == [IN_RELEASE]
    assert f"\n{ON_HUB}: " in result.stderr


def test_an_interruption_leaves_the_rows_before_it(imagenet, run, tmp_path, monkeypatch):
    put_on_hub(ON_HUB, weights_of(ON_HUB, 0))
    create = timm.create_model

    def interrupt(name, **kwargs):
        if name == IN_RELEASE:
            raise KeyboardInterrupt
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", interrupt)
    result, rows = run(imagenet, "--limit", 2)
    assert result.exit_code != 0
    assert [row["model"] for row in rows] == [ON_HUB]


def test_downloads_are_tried_only_if_asked_for(imagenet, run, empty_cache):
    apple = next(name for name in SMALLEST if WEIGHTS[name].url and not WEIGHTS[name].folder)
    result, _ = run(imagenet, "--only", apple)
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert not empty_cache
    result, _ = run(imagenet, "--only", apple, "--download")
    assert (result.exit_code, bool(empty_cache)) == (1, True)


def test_refusals(imagenet, run):
    for args, message in (
        ((), "give DATA"),
        ((imagenet, "--commands"), "give DATA"),
        ((imagenet, "--only", "resnet*"), "no published weights match 'resnet*'"),
    ):
        result, rows = run(*args)
        assert (result.exit_code, rows) == (2, [])
        assert message in " ".join(result.output.replace("│", " ").split())


def test_images_that_do_not_do(run, tmp_path):
    put_on_hub(ON_HUB, weights_of(ON_HUB, 0))
    (tmp_path / "two/cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "two/cat/0.png")
    for data, message in ((tmp_path / "nothing", "no folder"), (tmp_path / "two", "has 1 classes")):
        result, rows = run(data, "--only", ON_HUB)
        assert (result.exit_code, rows) == (2, [])
        assert message in " ".join(result.stderr.replace("│", " ").split())  # lines break where the path ends


def test_commands_test_every_detector_and_segmentor(run, tmp_path):
    """They run in a shell, with programs that only write down how they were called."""
    script = run("--commands")[0].stdout
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
    assert sorted(call[-1] for call in tested) == sorted(f"accuracy/{name}" for name in names)
    downloaded = {line.split()[-1] for line in calls if line.startswith("curl")}
    shown = CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "200"}).stdout
    for convert, test in zip(converted, tested, strict=True):
        name = convert[convert.index("--config") + 1]
        assert convert[convert.index("--out") + 1] in test
        assert convert[2] in downloaded or convert[2].endswith(f"/{CHECKPOINT}")
        assert all(option in shown for option in convert if option.startswith("--"))
        published = re.search(rf"# {re.escape(name)}: (box AP|mIoU) (\S+) on", script)
        readme = (find_config(name).parents[2] / "README.md").read_text()
        assert float(published[2]) == float(re.search(rf"{re.escape(name)}\.py\) \| (\S+) \|", readme)[1])
    assert run("--commands", "--only", "pspnet*")[0].stdout.count("timm-mobilevit convert") == sum(
        name.startswith("pspnet") for name in names
    )

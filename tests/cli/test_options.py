"""Options of the commands arrive: each shows its effect on what the networks get, or on what is written.

Targets, detectors and segmentors, and `export` are tested in the files of their commands.
"""

import json

import pytest
import timm
import torch
from PIL import Image
from random_weights import randomise
from safetensors.torch import load_file
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.convert import export_state_dict

ARCH = "mobilevitv3_xxs"
SIZE = 64


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Black pictures of 128 pixels with white middles of 64, in two splits of two classes."""
    folder = tmp_path_factory.mktemp("data")
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE))
    picture.paste((255, 255, 255), (SIZE // 2, SIZE // 2, 3 * SIZE // 2, 3 * SIZE // 2))
    for split, count in (("val", 2), ("train", 1)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                picture.save(folder / split / name / f"{name}{index}.png")
    return folder


@pytest.fixture(scope="module")
def models():
    """Two with random weights."""
    torch.manual_seed(0)
    return {name: randomise(timm.create_model(ARCH, num_classes=2)) for name in ("one", "two")}


@pytest.fixture(scope="module")
def file(models, tmp_path_factory):
    """A file with the weights of both, in an entry each."""
    path = tmp_path_factory.mktemp("file") / "both.pth"
    torch.save({name: model.state_dict() for name, model in models.items()}, path)
    return path


@pytest.fixture
def given(file):
    return ("--model", ARCH, "--checkpoint", file, "--entry", "two")


SIZED = ("--img-size", SIZE)
# Of a picture: all of the middle, all of the picture, and what the row of the architecture says, 256/288.
CROPS = [((*SIZED, "--crop-pct", 0.5), 1.0, 1.0), ((*SIZED, "--crop-pct", 1), 0.22, 0.28), (SIZED, 0.29, 0.36)]


@pytest.mark.parametrize(("options", "low", "high"), CROPS)
@pytest.mark.parametrize("command", ["predict", "evaluate", "attention"])
def test_img_size_and_crop_pct(command, options, low, high, data, given, inputs, tmp_path):
    source = data / "val" / "cat" / "cat0.png"
    if command == "attention":  # its pictures begin with what the network sees, below a line of text
        run("attention", source, *given, *options, "--out", tmp_path)
        seen = Image.open(tmp_path / "cat0-stage3.png").crop((0, 18, SIZE, 18 + SIZE))
        mean = torch.tensor(list(seen.tobytes())).float().mean().item() / 255
    else:
        run(command, source if command == "predict" else data, *given, *options)
        assert {tuple(x.shape[1:]) for x, _ in inputs} == {(3, SIZE, SIZE)}
        mean = inputs[0][0].mean().item()
    assert low <= mean + 1e-6
    assert mean - 1e-6 <= high


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ((), [4]),
        (("--batch-size", 3), [3, 1]),
        (("--limit", 2), [2]),
        (("--split", "train"), [2]),
    ],
)
def test_images_of_evaluate(options, batches, data, given, inputs, workers):
    run("evaluate", data, *given, *SIZED, *options)
    assert [(len(x), half) for x, half in inputs] == [(size, False) for size in batches]
    assert workers == [2]


def test_workers_of_evaluate(data, given, inputs, workers):
    run("evaluate", data, *given, *SIZED, "--workers", 1)
    assert workers == [1]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_dtype(command, data, given, inputs):
    for options, half in (((), False), (("--dtype", "float32"), False), (("--dtype", "bfloat16"), True)):
        inputs.clear()
        document = json.loads(run(command, data, *given, *SIZED, *options, "--json"))
        assert {is_half for _, is_half in inputs} == {half}
        if command == "evaluate":
            assert document["dtype"] == ("bfloat16" if half else "float32")


def test_batches_and_names_of_predict(data, given, inputs, models, tmp_path):
    (tmp_path / "labels.txt").write_text("Katze\nHund\n")
    names = ("--labels", tmp_path / "labels.txt", "--topk", 1, "--json")
    document = json.loads(run("predict", data, *given, *SIZED, "--batch-size", 4, *names))
    assert [len(x) for x, _ in inputs] == [4, 2]
    with torch.inference_mode():
        likely = models["two"](inputs[0][0]).softmax(1)[0]
    (guess,) = document["predictions"][0]["top"]
    assert guess["label"] == ("Katze", "Hund")[likely.argmax()]
    assert guess["probability"] == pytest.approx(likely.max().item(), abs=1e-5)


def converted(*args, out):
    run("convert", *args, "--out", out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", ["one", "two"])
def test_entry_and_prefix(name, file, models, tmp_path):
    expected = models[name].state_dict()["stem.conv.weight"]
    flat = tmp_path / "flat.pth"
    torch.save({f"{n}.{key}": t for n, model in models.items() for key, t in model.state_dict().items()}, flat)
    for source, option in ((file, "--entry"), (flat, "--prefix")):
        assert torch.equal(converted(source, option, name, out=tmp_path / option)["stem.conv.weight"], expected)
    report = json.loads(run("inspect", file, "--entry", name, "--json"))
    assert (report["classes"], report["architectures"]) == (2, [ARCH])
    assert f"--entry {name}" in report["convert"]


def test_source_of_convert(models, tmp_path):
    """In a file with the names of two layouts, it says which."""
    one, two = (model.state_dict() for model in models.values())
    theirs = export_state_dict(two, ARCH, "cvnets")
    torch.save({f"a.{key}": t for key, t in one.items()} | {f"b.{key}": t for key, t in theirs.items()}, tmp_path / "f")
    for source, expected in (("timm", one), ("cvnets", two)):
        weights = converted(tmp_path / "f", "--source", source, out=tmp_path / source)
        assert torch.equal(weights["head.fc.weight"], expected["head.fc.weight"])

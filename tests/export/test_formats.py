"""Exported files in their own runtimes, and the command that writes them: every format, every kind of model, each form.

What needs the packages runs in the environment of `make test-export`; the rest everywhere.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from export_models import shallow
from PIL import Image
from random_weights import randomise
from timm.data import resolve_data_config
from timm.task import ClassificationTask
from torch import nn
from typer.testing import CliRunner

from benchmarks import digits
from benchmarks.digits_data import write_digits
from timm_mobilevit.cli import app
from timm_mobilevit.evaluate import evaluate
from timm_mobilevit.export import ExportedModel, export_model
from timm_mobilevit.export._calibration import draw_images
from timm_mobilevit.export._compare import HALF_TOLERANCE, relative_difference
from timm_mobilevit.export._quietly import call_quietly, run_quietly
from timm_mobilevit.export.formats import FORMATS, format_of
from timm_mobilevit.export.runtimes import open_file
from timm_mobilevit.network.layers import ConvNormAct
from timm_mobilevit.variants import VARIANTS

MODELS = timm.list_models(module="mobilevit_zoo")
# The smallest of each generation.
SMALLEST = [
    min((name for name in MODELS if name.startswith(family)), key=lambda name: sum(VARIANTS[name].widths))
    for family in ("mobilevitv1", "mobilevitv2", "mobilevitv3")
]
RUN_HERE = [name for name, form in FORMATS.items() if form.open is not None]
OTHERS = [name for name in RUN_HERE if name != "onnx"]  # which has files of tests of its own


def taking(*options):
    return [name for name in OTHERS if FORMATS[name].takes.keys() >= {*options}]


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def needs(name):
    """Skip where a format's packages are missing."""
    try:
        FORMATS[name].require()
    except ImportError as error:
        pytest.skip(str(error))


def trained(name, **options):
    """A model whose norms, biases and statistics are not those of a new one, which exporters delete."""
    model = randomise(timm.create_model(name, **options)).train()
    with torch.no_grad():
        model(torch.rand(8, 3, 128, 128))
    return model.eval()


@pytest.mark.export
@pytest.mark.parametrize("to", OTHERS)
@pytest.mark.parametrize("name", SMALLEST)
def test_file_computes_what_pytorch_does(name, to, tmp_path):
    needs(to)
    model, path = trained(name, num_classes=3), tmp_path / f"model{FORMATS[to].ending}"
    difference = export_model(model, path, input_size=(3, 64, 64), labels=["a", "b", "c"])
    assert 0 < difference <= 1e-4
    images = torch.rand(2, 3, 64, 64)
    exported = ExportedModel(path, threads=1)
    assert (exported.num_classes, exported.pretrained_cfg["label_names"]) == (3, ["a", "b", "c"])
    with torch.inference_mode():
        expected = model(images)
    for laid_out in (images, images.to(memory_format=torch.channels_last), images.mT.contiguous().mT):
        torch.testing.assert_close(exported(laid_out), expected, rtol=0, atol=1e-4 * float(expected.std()))
    facts = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert facts["architecture"] == name
    assert facts["input_size"] == [3, 64, 64]
    assert facts["outputs"] == ["logits"]
    files = {path.name, f"{path.name}.json", *(f"model{ending}" for ending in FORMATS[to].siblings)}
    assert {file.name for file in tmp_path.iterdir()} == files
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or str(Path.home()).encode() not in file.read_bytes()
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


class Detector(nn.Module):
    """Boxes and scores of anchors, as those of ``timm_mobilevit.export.mm`` are."""

    output_names = ("boxes", "scores")
    export_metadata = {"task": "object-detection", "labels": ["cat", "dog"]}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.network = randomise(timm.create_model(SMALLEST[0], features_only=True, out_indices=(3, 4)))
        channels = self.network.feature_info.channels()
        self.heads = nn.ModuleList(randomise(nn.Conv2d(width, 2 * 7, 1)) for width in channels)

    def forward(self, x):
        levels = [head(level) for head, level in zip(self.heads, self.network(x), strict=True)]
        anchors = torch.cat([level.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 7) for level in levels], dim=1)
        return anchors[..., :4].sigmoid(), anchors[..., 4:].softmax(-1)[..., :-1]


class Segmentor(nn.Module):
    """Logits of the size of the image."""

    output_names = ("logits",)
    export_metadata = {"task": "semantic-segmentation", "labels": ["cat", "dog", "eel"]}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.network = randomise(timm.create_model(SMALLEST[0], features_only=True, out_indices=(2,)))
        self.head = randomise(nn.Conv2d(self.network.feature_info.channels()[0], 3, 1))
        self.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.2)}

    def forward(self, x):
        return nn.functional.interpolate(self.head(self.network(x)[0]), size=x.shape[-2:], mode="bilinear")


def maps():
    return randomise(timm.create_model(SMALLEST[1], features_only=True, out_indices=(1, 3, 4)))


@pytest.mark.export
@pytest.mark.parametrize("to", OTHERS)
@pytest.mark.parametrize(("model", "outputs"), [(maps, 3), (Detector, 2), (Segmentor, 1)])
def test_other_models(model, outputs, to, tmp_path):
    needs(to)
    model, path, images = model().eval(), tmp_path / f"model{FORMATS[to].ending}", torch.rand(1, 3, 64, 96)
    assert export_model(model, path, input_size=(3, 64, 96)) <= 1e-4
    found = open_file(path)(images.numpy())
    with torch.inference_mode():
        expected = model(images)
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    assert len(found) == outputs
    for ours, theirs in zip(expected, found, strict=True):
        assert relative_difference(ours, theirs) <= 1e-4


@pytest.mark.export
@pytest.mark.parametrize("to", taking("softmax", "image_input"))
@pytest.mark.parametrize("model", [lambda: shallow(SMALLEST[0], num_classes=3), Segmentor], ids=["classes", "pixels"])
def test_pixels_in_and_probabilities_out(model, to, tmp_path):
    needs(to)
    model, path = model(), tmp_path / f"model{FORMATS[to].ending}"
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    model.pretrained_cfg = {"mean": mean, "std": std}
    assert export_model(model, path, input_size=(3, 64, 96), softmax=True, image_input=True) <= 1e-4
    pixels = torch.randint(256, (1, 64, 96, 3), dtype=torch.uint8)
    (found,) = open_file(path)(pixels.numpy())
    x = pixels.permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = model((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).softmax(1)
    assert relative_difference(expected, found) <= 1e-4
    facts = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert (facts["image_input"], facts["mean"], facts["outputs"]) == (True, [0, 0, 0], ["probabilities"])
    torch.testing.assert_close(ExportedModel(path)(x).softmax(1), expected, rtol=1e-3, atol=1e-3)  # as predict sees it


@pytest.mark.export
def test_probabilities_of_ncnn(tmp_path):
    needs("ncnn")
    export_model(shallow(SMALLEST[0]), tmp_path / "model_ncnn", input_size=(3, 64, 64), softmax=True)
    (found,) = open_file(tmp_path / "model_ncnn")(np.zeros((1, 3, 64, 64), np.float32))
    assert found.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.export
@pytest.mark.parametrize("name", SMALLEST)
def test_xnnpack_computes_all_of_a_litert_file_in_one_part(name, tmp_path):
    needs("litert")
    from ai_edge_litert.interpreter import Interpreter

    export_model(trained(name), tmp_path / "model.tflite", input_size=(3, 64, 64))
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    assert max(len(tensor["shape"]) for tensor in interpreter.get_tensor_details()) == 4
    operators = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert operators.count("DELEGATE") == 1
    assert "BROADCAST_TO" not in operators


@pytest.mark.export
@pytest.mark.parametrize("to", taking("half"))
def test_half_halves_the_weights(to, tmp_path):
    needs(to)
    if FORMATS[to].open is None:
        return
    model, ending = trained(SMALLEST[-1], num_classes=1000), FORMATS[to].ending  # most of the file is weights

    def size(path):
        return sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())

    for half in (False, True):
        (tmp_path / str(half)).mkdir()
        difference = export_model(model, tmp_path / str(half) / f"model{ending}", input_size=(3, 64, 64), half=half)
    assert 1e-4 < difference < HALF_TOLERANCE
    assert size(tmp_path / "True" / "model") < 0.7 * size(tmp_path / "False" / "model")


@pytest.mark.export
@pytest.mark.parametrize("to", taking("calibration"))
def test_eight_bits(to, tmp_path):
    needs(to)
    pytest.importorskip({"openvino": "nncf"}.get(to, "torch"))
    noise(tmp_path / "images")
    timm.models.save_for_hf(trained(SMALLEST[-1], num_classes=3), tmp_path / "model")
    sizes = {}
    for name, options in (("float", ()), ("int8", ("--int8", "--calibration", tmp_path / "images"))):
        out = tmp_path / f"{name}{FORMATS[to].ending}"
        result = run("export", to, tmp_path / "model", "--img-size", 64, "--out", out, *options)
        assert result.exit_code == 0, result.output
        parts = [out, *(out.with_suffix(ending) for ending in FORMATS[to].siblings)]
        sizes[name] = sum(part.stat().st_size for part in parts)
    assert re.search(r"On 4 of the calibration images, the correlation .* float32 is 0\.\d{4}\.", result.output)
    assert sizes["int8"] < 0.6 * sizes["float"]
    assert ExportedModel(out)(torch.rand(2, 3, 64, 64)).isfinite().all()


def noise(folder, count=4, size=64):
    folder.mkdir()
    for index in range(count):
        pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.export
@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("pictures", [False, True])
def test_litert_computes_in_integers_alone(name, pictures, tmp_path):
    needs("litert")
    from ai_edge_litert.interpreter import Interpreter

    model, path = trained(name, num_classes=3), tmp_path / "model.tflite"
    images = noise(tmp_path / "images")
    export_model(model, path, input_size=(3, 64, 64), calibration=images, softmax=pictures, image_input=pictures)
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    kinds = {np.dtype(tensor["dtype"]).name for tensor in interpreter.get_tensor_details()}
    assert kinds == {"int8", "int32", *(["uint8"] if pictures else [])}
    (source,) = interpreter.get_input_details()
    if pictures:
        assert (source["dtype"], source["shape"].tolist()) == (np.uint8, [1, 64, 64, 3])
        assert source["quantization"] == (1.0, 0)  # a pixel is its own number
    else:
        assert (source["dtype"], source["shape"].tolist()) == (np.int8, [1, 3, 64, 64])


@pytest.mark.long
@pytest.mark.export
@pytest.mark.parametrize("name", [SMALLEST[1], SMALLEST[2]])
def test_litert_reads_digits_in_integers_as_well(name, tmp_path):
    """Top-1 within a point on the held-out scans, after a short training."""
    needs("litert")
    data = write_digits(tmp_path / "digits")
    torch.manual_seed(0)
    overlay = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    model = timm.create_model(name, num_classes=10, pretrained_cfg_overlay=overlay)
    loaders = digits.make_loaders(data, resolve_data_config({}, model=model), batch_size=32)
    digits.train(ClassificationTask(model), loaders, epochs=5, lr=4e-3)
    options = {"calibration": data / "train", "image_input": True, "softmax": True}
    export_model(model.eval(), tmp_path / "digits.tflite", input_size=(3, 64, 64), **options)
    (in_torch,), (in_litert,) = (
        evaluate(network, data, workers=0) for network in (model, ExportedModel(tmp_path / "digits.tflite"))
    )
    assert in_torch.top1 > 80
    assert in_litert.top1 > in_torch.top1 - 1


def test_calibration_images_are_what_the_model_takes(tmp_path):
    Image.new("RGB", (9, 9), (255, 255, 255)).save(tmp_path / "white.png")
    facts = {"input_size": [3, 8, 6], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (image,) = draw_images(facts, tmp_path)
    torch.testing.assert_close(image, torch.full((1, 3, 8, 6), 2.0))
    with pytest.raises(ValueError, match="needs the std of the images, which the model does not know"):
        draw_images({"input_size": [3, 8, 6], "mean": [0, 0, 0]}, tmp_path)


def test_calibration_images_are_cut_and_resized_as_the_model_says(tmp_path):
    """The middle of a wide picture, or all of it squashed; its own pixels, or blends of them."""
    columns = np.array([0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0], dtype=np.uint8)
    Image.fromarray(np.tile(columns, (4, 1))).convert("RGB").save(tmp_path / "wide.png")
    facts = {"input_size": [3, 4, 4], "mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 1.0}
    for options, row in (
        ({"crop_mode": "center", "interpolation": "nearest"}, [1, 1, 1, 1]),
        ({"crop_mode": "squash", "interpolation": "nearest"}, [0, 1, 1, 0]),
        ({"crop_mode": "squash", "interpolation": "bilinear"}, [0, 0.66, 0.66, 0]),
    ):
        (image,) = draw_images(facts | options, tmp_path)
        assert image[0, 1, 2].tolist() == pytest.approx(row, abs=0.01)


class Drifting(nn.Module):
    """Not the same function in the file: what a faulty converter would make."""

    def __init__(self):
        super().__init__()
        self.conv = randomise(ConvNormAct(3, 4, 3))

    def forward(self, x):
        factor = 1.01 if torch.compiler.is_exporting() or torch.jit.is_tracing() else 1.0
        return (factor * self.conv(x)).mean((2, 3))


@pytest.mark.export
@pytest.mark.parametrize("to", OTHERS)
def test_file_that_computes_something_else_is_not_kept(to, tmp_path):
    needs(to)
    with pytest.raises(RuntimeError, match=r"differs from PyTorch's by 0\.0.* more than 0.0001"):
        export_model(Drifting(), tmp_path / f"model{FORMATS[to].ending}", input_size=(3, 16, 16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.export
@pytest.mark.parametrize("to", RUN_HERE)
def test_command_writes_a_file_that_predict_and_evaluate_take(to, tmp_path):
    needs(to)
    directory, out = tmp_path / "model", tmp_path / f"digits{FORMATS[to].ending}"
    timm.models.save_for_hf(
        trained(SMALLEST[-1], num_classes=2), directory, model_config={"label_names": ["cat", "dog"]}
    )
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (200 * index, 30, 60)).save(tmp_path / "images" / name / "0.png")
    fixed = ["--static"] if "dynamic_size" in FORMATS[to].takes else []  # of any size: test_onnx.py
    result = run("export", to, directory, "--img-size", 64, "--out", out, *fixed)
    assert result.exit_code == 0, result.output
    differs, wrote = result.stdout.splitlines()
    assert "differs from PyTorch by" in differs
    assert f"Wrote {out}" in wrote

    def answers(checkpoint):
        options = ("--checkpoint", checkpoint, "--json", "--img-size", 64)
        predicted = run("predict", tmp_path / "images", *options)
        evaluated = run("evaluate", tmp_path / "images", *options, "--workers", 0)
        assert (predicted.exit_code, evaluated.exit_code) == (0, 0), predicted.output + evaluated.output
        (result,) = json.loads(evaluated.stdout)["results"]
        tops = [entry["top"] for entry in json.loads(predicted.stdout)["predictions"]]
        return [[(guess["label"], pytest.approx(guess["probability"], abs=1e-4)) for guess in top] for top in tops], (
            result["images"],
            result["top1"],
        )

    assert answers(out) == answers(directory)


@pytest.mark.export
@pytest.mark.parametrize("to", ["openvino", "ncnn"])
def test_timmx_itself_finds_our_models(to, tmp_path):
    needs(to)
    pytest.importorskip("timmx")
    timmx = Path(sys.executable).with_name("timmx")
    command = ["-m", "timm_mobilevit.run", timmx, "export", to, SMALLEST[-1], "--input-size", "3", "64", "64"]
    out = tmp_path / f"model{FORMATS[to].ending}"
    result = subprocess.run([sys.executable, *command, "--output", out], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert out.exists()


NOISY = """
import subprocess, sys

def noisy(text):
    print("to stdout")
    subprocess.run(["echo", "from a program"], check=True)
    print("to stderr", file=sys.stderr)
    if text != "fine":
        raise ValueError(f"gone {text}")
"""


def test_what_converters_print_is_kept_back(tmp_path, capfd, monkeypatch):
    (tmp_path / "converter.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from converter import noisy

    call_quietly(noisy, "fine", title="nothing")
    with pytest.raises(RuntimeError, match=r"^could not write nothing: ValueError: gone wrong$"):
        call_quietly(noisy, "wrong", title="nothing")
    with pytest.raises(RuntimeError, match="could not write nothing: code 3"):
        run_quietly([sys.executable, "-c", "raise SystemExit(3)"], "nothing")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tensorrt"], "No such command 'tensorrt'"),
        (["litert", SMALLEST[0], "--static"], "No such option: --static"),
        (["ncnn", SMALLEST[0], "--image-input"], "No such option: --image-input"),
        (["coreml", SMALLEST[0], "--int8"], "No such option: --int8"),
        (["openvino", SMALLEST[0], "--opset", "17"], "No such option: --opset"),
        (["executorch", SMALLEST[0], "--int8"], "--int8 and --calibration go together"),
        (["coreml", SMALLEST[0], "--evaluate", "."], "--evaluate runs the file, but Core ML runs on Apple's"),
    ],
)
def test_command_refuses_options_that_a_format_does_not_have(args, message, tmp_path):
    result = run("export", *args, "--out", tmp_path / "model")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_every_option_of_a_format_is_one_of_its_command():
    from timm_mobilevit.cli._export_options import OWN

    library_only = {"input_name"}
    assert {option for form in FORMATS.values() for option in form.takes} == OWN.keys() | library_only
    for name, form in FORMATS.items():
        command = typer.main.get_command(app).commands["export"].commands[name]
        defaults = {option.name: option.default for option in command.params}
        for option in form.takes.keys() & defaults.keys() - {"weight_type"}:  # of those that have it, without --int8
            assert defaults[option] == form.takes[option]
        shown = run("export", name, "--help").output
        for option, words in OWN.items():
            for word in words:
                assert (f"--{word.replace('_', '-')} " in shown) == (option in form.takes), (name, word)


def test_files_that_are_not_there_or_do_not_run_here(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*model\.tflite"):
        ExportedModel(tmp_path / "model.tflite")
    (tmp_path / "model.mlpackage").mkdir()
    with pytest.raises(ValueError, match="cannot be run here: Core ML runs on Apple's systems only"):
        ExportedModel(tmp_path / "model.mlpackage")
    with pytest.raises(ValueError, match=r"expected a name that ends in one of \.onnx"):
        ExportedModel(tmp_path / "model.pth")


def test_no_ending_is_the_end_of_another():
    for name, form in FORMATS.items():
        assert format_of(Path(f"model{form.ending}")) == name

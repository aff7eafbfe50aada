"""Exported files in their own runtimes, those that timmx writes too, and the command that writes them.

What needs the packages runs in the environment of `make test-export`; the rest everywhere.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from random_weights import randomise
from torch import nn
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.export import ExportedModel, export_with_timmx
from timm_mobilevit.export import with_timmx as module
from timm_mobilevit.export._calibration import calibration_images
from timm_mobilevit.formats import FORMATS, format_of, require
from timm_mobilevit.variants import VARIANTS

MODELS = timm.list_models(module="mobilevit_zoo")
# The smallest of each generation.
SMALLEST = [
    min((name for name in MODELS if name.startswith(family)), key=lambda name: sum(VARIANTS[name].widths))
    for family in ("mobilevitv1", "mobilevitv2", "mobilevitv3")
]
RUN_HERE = [name for name, form in FORMATS.items() if not form.unverified]
BY_TIMMX = [name for name in RUN_HERE if FORMATS[name].timmx is not None]


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def needs(name):
    """Skip where a format's packages are missing."""
    try:
        require(name)
    except ImportError as error:
        pytest.skip(str(error))


def trained(name, **options):
    """A model whose norms, biases and statistics are not those of a new one, which exporters delete."""
    model = randomise(timm.create_model(name, **options)).train()
    with torch.no_grad():
        model(torch.rand(8, 3, 128, 128))
    return model.eval()


@pytest.mark.export
@pytest.mark.parametrize("to", BY_TIMMX)
@pytest.mark.parametrize("name", SMALLEST)
def test_file_computes_what_pytorch_does(name, to, tmp_path):
    needs(to)
    model, path = trained(name, num_classes=3), tmp_path / f"model{FORMATS[to].ending}"
    difference = export_with_timmx(model, path, to, input_size=(3, 64, 64), labels=["a", "b", "c"])
    assert 0 < difference <= 1e-4
    images = torch.rand(2, 3, 64, 64)
    exported = ExportedModel(path, threads=1)
    assert (exported.num_classes, exported.pretrained_cfg["label_names"]) == (3, ["a", "b", "c"])
    with torch.inference_mode():
        expected = model(images)
    torch.testing.assert_close(exported(images), expected, rtol=0, atol=1e-4 * float(expected.std()))
    facts = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert facts["architecture"] == name
    assert facts["input_size"] == [3, 64, 64]
    files = {path.name, f"{path.name}.json", *(f"model{ending}" for ending in FORMATS[to].siblings)}
    assert {file.name for file in tmp_path.iterdir()} == files
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or str(Path.home()).encode() not in file.read_bytes()
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.export
@pytest.mark.parametrize("name", SMALLEST)
def test_xnnpack_computes_all_of_a_litert_file_in_one_part(name, tmp_path):
    needs("litert")
    from ai_edge_litert.interpreter import Interpreter

    export_with_timmx(trained(name), tmp_path / "model.tflite", "litert", input_size=(3, 64, 64))
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    assert max(len(tensor["shape"]) for tensor in interpreter.get_tensor_details()) == 4
    operators = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert operators.count("DELEGATE") == 1
    assert "BROADCAST_TO" not in operators


@pytest.mark.export
@pytest.mark.parametrize("to", BY_TIMMX)
def test_half_halves_the_weights(to, tmp_path):
    needs(to)
    model, ending = trained(SMALLEST[-1], num_classes=3), FORMATS[to].ending

    def size(path):
        return sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())

    for half in (False, True):
        (tmp_path / str(half)).mkdir()
        difference = export_with_timmx(
            model, tmp_path / str(half) / f"model{ending}", to, input_size=(3, 64, 64), half=half
        )
    assert 1e-4 < difference < 0.1
    assert size(tmp_path / "True" / "model") < 0.7 * size(tmp_path / "False" / "model")


@pytest.mark.export
@pytest.mark.parametrize("to", ["executorch", "openvino"])
def test_eight_bits(to, tmp_path):
    needs(to)
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    timm.models.save_for_hf(trained(SMALLEST[-1], num_classes=3), tmp_path / "model")
    sizes = {}
    for name, options in (("float", ()), ("int8", ("--int8", "--calibration", tmp_path / "images"))):
        out = tmp_path / f"{name}{FORMATS[to].ending}"
        result = run("export", tmp_path / "model", "--format", to, "--img-size", 64, "--out", out, *options)
        assert result.exit_code == 0, result.output
        parts = [out, *(out.with_suffix(ending) for ending in FORMATS[to].siblings)]
        sizes[name] = sum(part.stat().st_size for part in parts)
    assert re.search(r"On 4 of the calibration images, the correlation .* float32 is 0\.\d{4}\.", result.output)
    assert sizes["int8"] < 0.6 * sizes["float"]
    assert ExportedModel(out)(torch.rand(2, 3, 64, 64)).isfinite().all()


def test_calibration_images_are_what_the_model_takes(tmp_path):
    Image.new("RGB", (9, 9), (255, 255, 255)).save(tmp_path / "white.png")
    facts = {"input_size": [3, 8, 6], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (image,) = calibration_images(facts, tmp_path)
    torch.testing.assert_close(image, torch.full((1, 3, 8, 6), 2.0))
    with pytest.raises(ValueError, match="needs the std of the images, which the model does not know"):
        calibration_images({"input_size": [3, 8, 6], "mean": [0, 0, 0]}, tmp_path)


@pytest.mark.export
@pytest.mark.parametrize("to", BY_TIMMX)
def test_file_that_computes_something_else_is_not_kept(to, tmp_path, monkeypatch):
    needs(to)
    monkeypatch.setattr(module, "save_for_hf", lambda model, *args, **kwargs: save(double(model), *args, **kwargs))
    save = timm.models.save_for_hf

    def double(model):
        model.head.fc.weight.data *= 1.01
        return model

    with pytest.raises(RuntimeError, match=r"differs from PyTorch's by 0\.0.* more than 0.0001"):
        export_with_timmx(trained(SMALLEST[-1]), tmp_path / f"model{FORMATS[to].ending}", to, input_size=(3, 64, 64))
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
    result = run("export", directory, "--format", to, "--img-size", 64, "--out", out)
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
    timmx = Path(sys.executable).with_name("timmx")
    command = ["-m", "timm_mobilevit.run", timmx, "export", to, SMALLEST[-1], "--input-size", "3", "64", "64"]
    out = tmp_path / f"model{FORMATS[to].ending}"
    result = subprocess.run([sys.executable, *command, "--output", out], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert out.exists()


def test_what_writers_print_is_kept_back(capfd):
    print("before")
    with module._kept_back():
        print("from Python")
        print("to stderr", file=sys.stderr)
        subprocess.run(["echo", "from a program"], check=True)
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    with pytest.raises(ValueError, match="gone wrong"), module._kept_back():
        raise ValueError("gone wrong")
    print("again")
    assert capfd.readouterr() == ("again\n", "")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.timmx is not None])
def test_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setattr("timm_mobilevit.formats.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf'timm-mobilevit\[{name}\]", on Python 3\.11'):
        export_with_timmx(timm.create_model(SMALLEST[0]), tmp_path / f"model{FORMATS[name].ending}", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "name", "to", "message"),
    [
        (nn.Identity(), "model.xml", "openvino", "takes a classifier of this package, got Identity"),
        (nn.Identity(), "model.onnx", "openvino", "ends in .xml for OpenVINO"),
        (nn.Identity(), "model.onnx", "onnx", "timmx is used for openvino, litert, ncnn, tensorrt, coreai; got 'onnx'"),
    ],
)
def test_refuses(model, name, to, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_with_timmx(model, tmp_path / name, to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "tflite"], "expected one of onnx, coreml, executorch, openvino"),
        (["--format", "litert", "--static"], "--static goes with --format onnx; got litert"),
        (["--format", "ncnn", "--backbone"], "--backbone goes with --format onnx, coreml, executorch"),
        (
            ["--format", "coreml", "--half"],
            "--half goes with --format onnx, openvino, litert, ncnn, tensorrt; got coreml",
        ),
    ],
)
def test_command_refuses_options_that_a_format_does_not_have(args, message, tmp_path):
    result = run("export", SMALLEST[0], "--out", tmp_path / "model", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


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

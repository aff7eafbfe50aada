"""The folder of `timm-mobilevit export web`: its files, and what transformers.js and the page are told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from export_models import close, interface, shallow
from kinds import KINDS
from PIL import Image
from random_weights import randomise
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from timm_mobilevit.cli import app  # noqa: E402
from timm_mobilevit.export import web  # noqa: E402
from timm_mobilevit.export.web import export_web  # noqa: E402

PAGE = ["classify.js", "index.html", "offline.js", "page.css", "page.js"]
RUNTIME = [
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort-wasm-simd-threaded.wasm",
    "ort.wasm.bundle.min.mjs",
    "ort.webgpu.bundle.min.mjs",
]
SIZE = (3, 64, 64)
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def configured(name=KINDS[-1], num_classes=3, **values):
    """A model with random weights; its configuration has other values than all of ours."""
    model = shallow(name, num_classes)
    model.pretrained_cfg = {"architecture": name, "input_size": SIZE, "mean": MEAN, "std": STD, **values}
    return model


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = generator.integers(0, 256, (*SIZE[1:], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def test_files(tmp_path):
    model = configured(tag="my_tag", license="mit", crop_pct=0.75, interpolation="lanczos")
    difference, loss = export_web(model, tmp_path / "new" / "site", labels=["cat", "dög", "emu"])
    site = tmp_path / "new" / "site"
    assert contents(site) == sorted([*PAGE, "config.json", "preprocessor_config.json", "onnx/model.onnx"])
    assert 0 < difference < 1e-4
    assert loss is None
    assert "data-runtime" not in (site / "index.html").read_text(encoding="utf-8")
    assert read(site / "config.json") == {
        "model_type": "mobilevit",
        "architectures": ["MobileViTForImageClassification"],
        "id2label": {"0": "cat", "1": "dög", "2": "emu"},
        "architecture": KINDS[-1],
        "tag": "my_tag",
        "license": "mit",
        "transformers.js_config": {"dtype": "fp32"},
    }
    assert read(site / "preprocessor_config.json") == {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 85},
        "resample": 1,
        "interpolation": "lanczos",
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "do_flip_channel_order": False,
    }


def test_squashed_with_names_of_its_own(tmp_path):
    model = configured(KINDS[0], crop_mode="squash", crop_pct=0.5, label_names=["a", "b", "c"])
    export_web(model, tmp_path, input_size=(3, 64, 96))
    preprocessor = read(tmp_path / "preprocessor_config.json")
    assert preprocessor["size"] == {"height": 128, "width": 192}
    assert preprocessor["crop_size"] == {"height": 64, "width": 96}
    assert read(tmp_path / "config.json")["id2label"] == {"0": "a", "1": "b", "2": "c"}
    path = tmp_path / "onnx" / "model.onnx"
    assert interface(path) == {
        "pixel_values": ("FLOAT", ["batch", 3, 64, 96]),
        "logits": ("FLOAT", ["batch", 3]),
    }
    pixels = torch.rand(2, 3, 64, 96)
    session = onnxruntime.InferenceSession(path)
    with torch.inference_mode():
        close(session.run(["logits"], {"pixel_values": pixels.numpy()})[0], model.eval()(pixels))


def test_eight_bits_and_again_without(tmp_path, images):
    model, site = configured(), tmp_path / "site"
    site.mkdir()
    (site / "CNAME").write_text("of the user")
    _, loss = export_web(model, site, calibration=images, weight_type="uint8")
    quantized = site / "onnx" / "model_quantized.onnx"
    assert loss.num_images == 4
    assert 0.8 < loss.correlation < 1
    assert quantized.stat().st_size < (site / "onnx" / "model.onnx").stat().st_size / 2
    assert list(interface(quantized)) == ["pixel_values", "logits"]
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in onnx.load(quantized).graph.initializer}
    assert "UINT8" in kinds
    assert "INT8" not in kinds
    config = read(site / "config.json")
    assert config["id2label"] == {"0": "0", "1": "1", "2": "2"}
    assert "transformers.js_config" not in config

    dist = tmp_path / "dist"
    dist.mkdir()
    for name in [*RUNTIME, "ort.all.min.js"]:
        (dist / name).write_text(name)
    export_web(model, site, runtime=dist)
    assert not quantized.exists()
    assert "CNAME" in contents(site)
    assert contents(site / "runtime") == RUNTIME
    assert all((site / "runtime" / name).read_text() == name for name in RUNTIME)
    assert '<html data-runtime="runtime/" lang="en">' in (site / "index.html").read_text(encoding="utf-8")


def test_page_names_one_version_of_the_runtime():
    texts = [path.read_text(encoding="utf-8") for path in Path(web.__file__).with_name("web_page").iterdir()]
    addresses = [found for text in texts for found in re.findall(r"https?://[^\"\s]+", text)]
    assert sorted(addresses) == ["http://localhost:8000", "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolation": "hamming"}, "bilinear, bicubic, lanczos, but .* 'hamming'"),
        ({"crop_mode": "border"}, "64×64 with the crop_mode 'border'"),
        ({"crop_pct": 1.25}, "does not pad pictures, which a crop_pct of 1.25"),
        ({"input_size": (3, 64, 96)}, "64×96 with the crop_mode 'center'"),
        ({"input_size": (1, 64, 64)}, "RGB images, but this one takes 1 channels"),
        ({"mean": None}, "does not say mean of the images"),
    ],
)
def test_preprocessing_that_no_page_does(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_web(configured(**values), tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features_only": True}, "two or more classes, but FeatureListNet is none"),
        ({"num_classes": 0}, "two or more classes, but MobileViT is none"),
        ({"num_classes": 1}, "two or more classes, but MobileViT is none"),
    ],
)
def test_models_without_a_page(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_web(timm.create_model(KINDS[0], **options), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_bad_folders(tmp_path):
    model = configured()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; expected a folder"):
        export_web(model, tmp_path / "file")
    (tmp_path / "taken" / "index.html").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"index\.html is a folder"):
        export_web(model, tmp_path / "taken")
    (tmp_path / "taken" / "index.html").rmdir()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "taken" / name).mkdir()
        with pytest.raises(ValueError, match=rf"{name} is a folder"):
            export_web(torch.nn.Linear(1, 1), tmp_path / "taken")  # before it looks at the model
        (tmp_path / "taken" / name).rmdir()
    (tmp_path / "taken too").mkdir()
    (tmp_path / "taken too" / "onnx").touch()
    with pytest.raises(ValueError, match="onnx is a file"):
        export_web(model, tmp_path / "taken too")
    with pytest.raises(FileNotFoundError, match=r"dist has no ort\.webgpu\.bundle\.min\.mjs, .*onnxruntime-web 1\.30"):
        export_web(model, tmp_path / "site", runtime=tmp_path / "dist")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        export_web(model, tmp_path / "site", calibration=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="2 labels, but the model has 3 classes"):
        export_web(model, tmp_path / "site", labels=["a", "b"])
    assert not (tmp_path / "site").exists()


def run(*args):
    return CliRunner().invoke(app, ["export", "web", *map(str, args)])


def test_command(tmp_path, images):
    model, site, dist = randomise(timm.create_model(KINDS[0], num_classes=2)), tmp_path / "site", tmp_path / "dist"
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    dist.mkdir()
    for name in RUNTIME:
        (dist / name).write_text(name)
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        (images / f"{index}.png").rename(tmp_path / "data" / name / "one.png")
    args = (KINDS[0], "--checkpoint", tmp_path / "model.pth", "--img-size", 64, "--out", site)
    options = ("--labels", tmp_path / "names.txt", "--runtime", dist, "--evaluate", tmp_path / "data")
    done = run(*args, *options, "--int8", "--calibration", images, "--weight-type", "uint8")
    assert done.exit_code == 0, done.output
    assert re.search(r"In ONNX Runtime, it differs from PyTorch by \d\.\de-0\d of the standard deviation", done.output)
    assert "On 2 of the calibration images, the correlation of the outputs in 8 bits with float32 is " in done.output
    assert re.search(r"Top-1 on \S+data: \d+\.00 % in PyTorch, \d+\.00 % in model_quantized\.onnx", done.output)
    assert f"python -m http.server --directory {site}" in done.output
    assert contents(site / "runtime") == RUNTIME
    assert contents(site / "onnx") == ["model.onnx", "model_quantized.onnx"]
    assert read(site / "config.json")["id2label"] == {"0": "cat", "1": "dog"}
    assert "tag" not in read(site / "config.json")  # they are other weights
    assert interface(site / "onnx" / "model.onnx")["pixel_values"] == ("FLOAT", ["batch", 3, 64, 64])
    done = run(*args)
    assert (done.exit_code, "site is not empty" in done.stderr) == (1, True)
    done = run(*args, "--force")
    assert done.exit_code == 0, done.output
    assert contents(site / "onnx") == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8",), "--int8 and --calibration go together"),
        (("--weight-type", "uint8"), "--weight-type goes with --int8"),
        (("--entry", "model_ema"), "--entry goes with --checkpoint"),
        (("--checkpoint", __file__, "--random-weights"), "--checkpoint and --random-weights exclude each other"),
        (("--evaluate", ".", "--img-size", "64,96"), "--evaluate measures on squares"),
        (("--backbone",), "No such option: --backbone"),
        (("--config", "ssdlite_mobilevitv3-xxs"), "No such option: --config"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path):
    done = run(KINDS[0], "--out", tmp_path / "site", *options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []

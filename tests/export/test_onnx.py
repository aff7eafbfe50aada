"""ONNX files and the command `timm-mobilevit export`."""

import json
import re
import warnings
from contextlib import nullcontext

import pytest
import timm
import torch
from export_models import assert_plain, assert_traced_plain, close, interface, run_file, shallow
from kinds import KINDS, NAMES
from PIL import Image
from random_weights import randomise
from timm.data import resolve_model_data_config
from torch import nn
from typer.testing import CliRunner

import timm_mobilevit
from timm_mobilevit.network.layers import ConvNormAct
from timm_mobilevit.network.model import MobileViT
from timm_mobilevit.variants import VARIANTS

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from timm_mobilevit.cli import app  # noqa: E402
from timm_mobilevit.evaluate import evaluate  # noqa: E402
from timm_mobilevit.export import ExportedModel, export_onnx  # noqa: E402
from timm_mobilevit.export._metadata import find_metadata  # noqa: E402
from timm_mobilevit.export._network import prepare  # noqa: E402
from timm_mobilevit.export.onnx import check_valid  # noqa: E402
from timm_mobilevit.export.runtimes import open_file  # noqa: E402

SIZE = (3, 64, 96)


def metadata_of(path):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def check_any_batch_and_size(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(model, path, input_size=SIZE)
    for batch, height, width in ((1, 64, 96), (3, 64, 96), (2, 96, 64), (1, 100, 71)):
        images = torch.rand(batch, 3, height, width)
        with torch.inference_mode():
            close(run_file(path, images)["logits"], model(images))
    assert_plain(path)
    graph = onnx.load(path).graph
    # tract refuses symbols there; OpenCV 5 does not know the value that the standard says is the default.
    assert not [v.name for v in graph.value_info if any(size.dim_param for size in v.type.tensor_type.shape.dim)]
    zeros = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    assert [[attribute.name for attribute in node.attribute] for node in zeros] == [["value"]] * len(zeros)


@pytest.mark.parametrize("name", KINDS)
def test_any_batch_and_size(name, tmp_path):
    check_any_batch_and_size(shallow(name), tmp_path / "model.onnx")


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_and_size_of_every_model(name, tmp_path):
    check_any_batch_and_size(randomise(timm.create_model(name, num_classes=10)), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", KINDS)
def test_fixed_file_is_simple(name, tmp_path):
    """Where all sizes are known there is nothing to compute about them, and no map is resized that need not be."""
    path = tmp_path / "deep" / "model.onnx"
    export_onnx(shallow(name), path, input_size=(3, 64, 64), dynamic_batch=False, dynamic_size=False)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert_plain(path)
    model = onnx.load(path)
    used = {node.op_type for node in model.graph.node}
    assert not used & {"Shape", "Range", "Resize", "BatchNormalization", "If", "Loop", "NonZero", "Identity"}
    (images,) = model.graph.input
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [1, 3, 64, 64]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_backbone(tmp_path):
    path = tmp_path / "backbone.onnx"
    model = timm.create_model(KINDS[-1], features_only=True, out_indices=(1, 2)).eval()
    export_onnx(model, path, input_size=SIZE, dynamic_size=False)
    images = torch.rand(3, *SIZE)
    outputs = run_file(path, images)
    assert list(outputs) == ["feature_0", "feature_1"]
    with torch.inference_mode():
        for actual, expected in zip(outputs.values(), model(images), strict=True):
            close(actual, expected)
    assert metadata_of(path)["feature_reductions"] == [4, 8]
    assert_plain(path)


@pytest.mark.parametrize(
    ("out_indices", "reductions"), [((4, 2), [8, 32]), ((-1, 1), [4, 32]), ((2, 2), [8]), (2, [16, 32])]
)
def test_reductions_are_those_of_the_maps(out_indices, reductions):
    """timm gives the maps in the order of the stages, each once."""
    model = timm.create_model(KINDS[-1], features_only=True, out_indices=out_indices).eval()
    with torch.inference_mode():
        sides = [output.shape[-1] for output in model(torch.rand(1, 3, 128, 128))]
    assert [128 // side for side in sides] == reductions
    assert prepare(model, (3, 64, 64)).metadata["feature_reductions"] == reductions


def test_mean_and_std_of_other_channels():
    """Averages of three, as timm makes of them for a model of other images."""
    model = Small()
    model.pretrained_cfg = {"mean": tuple(torch.tensor([0.25, 0.5, 0.75]).numpy()), "std": (0.5, 0.25, 0.0)}
    found = json.loads(json.dumps(find_metadata(model, (3, 8, 8))))
    assert found == {"mean": [0.25, 0.5, 0.75], "std": [0.5, 0.25, 0.0], "input_size": [3, 8, 8]}
    assert find_metadata(model, (1, 8, 8)) == {"mean": [0.5], "std": [0.25], "input_size": [1, 8, 8]}


def test_model_is_left_as_it_is_and_described(tmp_path):
    path = tmp_path / "model.onnx"
    data = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.75, "crop_mode": "border"}
    data["interpolation"] = "nearest"
    overlay = {"label_names": ["cat", "dög"], **data}
    model = timm.create_model(KINDS[0], num_classes=2, pretrained_cfg_overlay=overlay)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    export_onnx(model, path, input_size=(3, 64, 64), dynamic_batch=False, dynamic_size=False, opset=20)
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [opset.version for opset in onnx.load(path).opset_import] == [20]
    metadata = metadata_of(path)
    assert metadata["architecture"] == KINDS[0]
    assert metadata["tag"] == model.pretrained_cfg["tag"]
    assert {key: metadata[key] for key in data} == data
    assert metadata["license"] == model.pretrained_cfg["license"]
    read = resolve_model_data_config(ExportedModel(path))  # what timm makes of it
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in read.items()} == {
        **data,
        "input_size": [3, 64, 64],
    }
    assert metadata["labels"] == ["cat", "dög"]
    assert metadata["input_size"] == [3, 64, 64]


def test_single_class_and_no_class(tmp_path):
    """One logit has no spread to compare with; without a classifier the outputs are features."""
    for classes, output in ((1, "logits"), (0, "features")):
        model = shallow(KINDS[0], num_classes=classes)
        export_onnx(model, tmp_path / "model.onnx", input_size=(3, 64, 64), dynamic_batch=False, dynamic_size=False)
        assert list(run_file(tmp_path / "model.onnx", torch.rand(1, 3, 64, 64))) == [output]


def test_name_of_the_input(tmp_path):
    options = {"input_size": (3, 16, 16), "input_name": "pixel_values"}
    export_onnx(Small(), tmp_path / "any.onnx", **options)  # it is run
    export_onnx(Small(), tmp_path / "one.onnx", dynamic_batch=False, dynamic_size=False, **options)
    assert interface(tmp_path / "one.onnx")["pixel_values"] == ("FLOAT", [1, 3, 16, 16])


class Small(nn.Module):
    """Quick to export."""

    def __init__(self):
        super().__init__()
        self.conv = ConvNormAct(3, 4, 3, stride=2)
        self.eval()

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class Flat(Small):
    """Takes one size only."""

    def forward(self, x):
        return self.conv(x).reshape(x.shape[0], 4 * 8 * 8)


class Branching(Small):
    """Takes any size, but no graph does what it does."""

    def forward(self, x):
        return super().forward(x) if x.shape[-1] != 128 else self.conv(x).amax((2, 3))


class Drifting(Small):
    """Not the same function in the file: what a faulty translation would look like."""

    def forward(self, x):
        x = super().forward(x)
        return 1.01 * x if torch.compiler.is_exporting() else x


def test_file_that_computes_something_else_is_not_kept(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(RuntimeError, match="logits differs from PyTorch's by"):
        export_onnx(Drifting(), path, input_size=(3, 16, 16))
    assert not list(tmp_path.iterdir())
    path.write_text("an older file")
    with pytest.raises(RuntimeError):
        export_onnx(Drifting(), path, input_size=(3, 16, 16))
    assert path.read_text() == "an older file"
    export_onnx(Small(), path, input_size=(3, 16, 16))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="not valid ONNX"):
        check_valid(path)


def test_file_that_does_not_run_is_reported():
    def run(images):
        raise onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument("another size")

    network = prepare(Small(), (3, 16, 16))
    network.tolerance = 1e-4
    with pytest.raises(RuntimeError, match=r"does not run on \[1, 3, 16, 16\] \(another size\)$"):
        network.compare(run)
    network.axes = {2: "height"}
    with pytest.raises(RuntimeError, match=r"another size.; export with dynamic_size=False"):
        network.compare(run)


class Cancelling(nn.Module):
    """Adds a large number and takes it away: float32 keeps three digits."""

    def __init__(self):
        super().__init__()
        self.unused = ConvNormAct(3, 4, 3)  # what export asks for

    def forward(self, x):
        return (x.mean((2, 3)) + 2048) - 2048


class OnlyFloat32(Cancelling):
    def forward(self, x):
        return super().forward(x) @ torch.eye(3)


def test_file_may_be_as_far_off_as_float32_is():
    network = prepare(Cancelling(), (3, 16, 16))
    exact = network.images().double().mean((2, 3))
    rounding = (network.outputs(network.images())[0] - exact).abs().max()
    assert 2e-5 < rounding < 2e-4  # of a mean of 256 numbers; a step of float32 at 2048 is 2.4e-4

    for factor, fits in ((0, True), (6, True), (-6, True), (15, False), (float("nan"), False)):
        outputs = [(exact + factor * rounding).numpy()]
        with nullcontext() if fits else pytest.raises(RuntimeError, match="logits differs from PyTorch's by"):
            network.compare(lambda images, outputs=outputs: outputs)
    with pytest.raises(RuntimeError, match=r"more than 0\.0001$"):  # what float64 gives is not known
        prepare(OnlyFloat32(), (3, 16, 16)).compare(lambda images: [exact.numpy()])


def test_pictures_are_compared_in_float64_too():
    model = Cancelling()
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.2)}
    network = prepare(model, (3, 16, 16), image_input=True)
    pixels = network.images().permute(0, 3, 1, 2).double() / 255
    shift, scale = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1).double() for key in ("mean", "std"))
    assert network.compare(lambda images: [((pixels - shift) / scale).mean((2, 3)).numpy()]) > 1e-4


def test_files_that_are_none_of_ours(tmp_path):
    """Cut, empty, or with metadata of another program."""
    path = tmp_path / "model.onnx"
    export_onnx(Small(), path, input_size=(3, 16, 16), dynamic_size=False)
    whole = path.read_bytes()
    for content, message in ((whole[:-100], "is no ONNX file, or a damaged one"), (b"", "does not say which images")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ExportedModel(path)
        with pytest.raises(ValueError, match="ONNX Runtime cannot load"):
            open_file(path)
        done = CliRunner().invoke(app, ["predict", str(tmp_path), "--checkpoint", str(path)])
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.output
    path.write_bytes(whole)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {"author": "another program"})
    onnx.save(proto, path)
    with pytest.raises(
        ValueError, match="does not say which images it takes; expected a file of `timm-mobilevit export`"
    ):
        ExportedModel(path)


def test_operators_of_others_are_refused(tmp_path):
    node = onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in (("", 18), ("com.microsoft", 1))]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match=r"not ONNX's own: com\.microsoft\.Gelu"):
        check_valid(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("model", "message"),
    [(Flat(), r"Flat does not take images of \[3, 3, 53, 21\]"), (Branching(), "Branching cannot be exported for any")],
)
def test_size_that_must_be_fixed(model, message, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=f"{message}.*dynamic_size=False"):
        export_onnx(model, path, input_size=(3, 16, 16))
    assert not list(tmp_path.iterdir())
    export_onnx(model, path, input_size=(3, 16, 16), dynamic_size=False)
    images = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        close(run_file(path, images)["logits"], model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": (3, 64)}, "input_size must be channels, height and width"),
        ({"input_size": (3, 64, 0)}, "input_size must be"),
        ({"input_size": (1, 64, 64)}, "to have 3 channels, but got 1 channels"),  # as PyTorch says it
        ({"opset": 11}, "opset must be 17 or newer, got 11"),
        ({"half_io": True}, "half_io is for half=True"),
    ],
)
def test_bad_arguments(options, message, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=message):
        export_onnx(timm.create_model(KINDS[0]), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("timm_mobilevit.export._format.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r'onnxscript.*pip install "timm-mobilevit\[onnx\]"'):
        export_onnx(Small(), tmp_path / "model.onnx")


def run(*args):
    return CliRunner().invoke(app, ["export", "onnx", *map(str, args)])


class TestCommand:
    def test_checkpoint_and_directory_give_the_same(self, tmp_path):
        checkpoint = tmp_path / "model_best.pth.tar"
        state_dict = randomise(timm.create_model(KINDS[0], num_classes=3)).state_dict()
        torch.save({"state_dict": state_dict}, checkpoint)
        labels = tmp_path / "labels.txt"
        labels.write_text("cat\ndog\neel")
        convert = ["convert", checkpoint, "--arch", KINDS[0], "--labels", labels, "--img-size", 64, "--out"]
        assert CliRunner().invoke(app, [*map(str, convert), str(tmp_path / "animals")]).exit_code == 0
        (tmp_path / "others.txt").write_text("Katze\nHund\nAal")
        args = ("--img-size", 64, "--static", "--labels", tmp_path / "others.txt", "--out", tmp_path / "1.onnx")
        first = run(KINDS[0], "--checkpoint", checkpoint, *args)
        second = run(tmp_path / "animals", "--static", "--out", tmp_path / "2.onnx")
        for done in (first, second):
            assert done.exit_code == 0, done.output
            assert "images of 64×64 pixels" in done.stdout
        images = torch.rand(1, 3, 64, 64)
        expected = torch.from_numpy(run_file(tmp_path / "1.onnx", images)["logits"])
        close(run_file(tmp_path / "2.onnx", images)["logits"], expected)
        assert metadata_of(tmp_path / "2.onnx")["labels"] == ["cat", "dog", "eel"]
        fixed = {"images": ("FLOAT", [1, 3, 64, 64]), "logits": ("FLOAT", [1, 3])}
        assert interface(tmp_path / "1.onnx") == interface(tmp_path / "2.onnx") == fixed
        described = metadata_of(tmp_path / "1.onnx")
        assert described["labels"] == ["Katze", "Hund", "Aal"]
        assert described["architecture"] == KINDS[0]
        assert not {"tag", "license"} & described.keys()  # these weights are not published

    def test_backbone(self, tmp_path):
        out = tmp_path / "backbone.onnx"
        args = (KINDS[0], "--random-weights", "--backbone", "--out-indices", "1,-3", "--img-size", 64, "--fixed-size")
        done = run(*args, "--out", out)
        assert done.exit_code == 0, done.output
        shapes = [tensor.shape for tensor in run_file(out, torch.rand(5, 3, 64, 64)).values()]
        widths = VARIANTS[KINDS[0]].widths
        assert shapes == [(5, widths[1], 16, 16), (5, widths[2], 8, 8)]
        assert interface(out)["images"] == ("FLOAT", ["batch", 3, 64, 64])
        again = run(*args, "--out", out)
        assert (again.exit_code, again.stdout) == (1, "")
        assert "exists" in again.stderr

    def test_int8(self, tmp_path):
        for index in range(4):
            pixels = torch.randint(256, (80, 64, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        out = tmp_path / "int8.onnx"
        args = (KINDS[0], "--random-weights", "--img-size", 64, "--static", "--int8", "--calibration", tmp_path)
        done = run(*args, "--weight-type", "uint8", "--out", out)
        assert done.exit_code == 0, done.output
        assert re.search(r"On 4 of the calibration images, the correlation .* float32 is 0\.\d{4}\.", done.output)
        weights = [t for t in onnx.load(out).graph.initializer if len(t.dims) == 4 and t.name.endswith("_quantized")]
        assert {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in weights} == {"UINT8"}
        assert run_file(out, torch.rand(1, 3, 64, 64))["logits"].shape == (1, 1000)

    def test_grey_images(self, tmp_path):
        """The file of a model says how many channels it has; its configuration says three."""
        torch.save(timm.create_model(KINDS[0], in_chans=1, num_classes=2).state_dict(), tmp_path / "grey.pth")
        (tmp_path / "images").mkdir()
        for index in range(4):
            pixels = torch.randint(256, (64, 64), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        args = (KINDS[0], "--checkpoint", tmp_path / "grey.pth", "--img-size", 64, "--static")
        done = run(*args, "--int8", "--calibration", tmp_path / "images", "--out", tmp_path / "grey.onnx")
        assert done.exit_code == 0, done.output
        assert interface(tmp_path / "grey.onnx")["images"] == ("FLOAT", [1, 1, 64, 64])
        assert metadata_of(tmp_path / "grey.onnx")["mean"] == [0.0]

    def test_accuracy_before_and_after(self, tmp_path):
        timm.models.save_for_hf(randomise(timm.create_model(KINDS[0], num_classes=2)), tmp_path / "model")
        for index in range(6):
            (tmp_path / "images" / str(index % 2)).mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / str(index % 2) / f"{index}.png")
        args = ("--img-size", 64, "--static", "--evaluate", tmp_path / "images", "--out", tmp_path / "model.onnx")
        sizes = set()
        hook = nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: sizes.add(tuple(args[0].shape[2:])) if isinstance(module, MobileViT) else None
        )
        done = run(tmp_path / "model", *args)
        hook.remove()
        assert done.exit_code == 0, done.output
        assert sizes == {(64, 64)}  # the model's own size is 256
        (expected,) = evaluate(ExportedModel(tmp_path / "model.onnx"), tmp_path / "images", workers=0)
        top1 = f"{expected.top1:.2f} %"
        assert f"Top-1 on {tmp_path / 'images'}: {top1} in PyTorch, {top1} in model.onnx." in done.stdout

    def test_images_of_other_classes_are_refused_before_the_export(self, tmp_path):
        (tmp_path / "images" / "cat").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / "cat" / "0.png")
        args = ("--random-weights", "--img-size", 64, "--evaluate", tmp_path / "images", "--out", tmp_path / "x.onnx")
        done = run(KINDS[0], *args)
        assert done.exit_code == 1
        assert "has 1 classes with images, but the model has 1000" in done.stderr
        assert not (tmp_path / "x.onnx").exists()

    def test_published_weights_are_the_default(self, tmp_path, monkeypatch):
        """Never silently random ones: where they cannot be had, nothing is written."""
        asked = []

        def create_model(name, pretrained=False, **kwargs):
            asked.append((name, pretrained))
            raise OSError("no connection")

        monkeypatch.setattr(timm, "create_model", create_model)
        done = run(KINDS[0], "--out", tmp_path / "model.onnx")
        assert (done.exit_code, asked) == (1, [(KINDS[0], True)])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "args",
        [
            (),
            (KINDS[0], "--config", "ssdlite_mobilevitv3-xxs"),
            (KINDS[0], "--checkpoint", "x.pth", "--random-weights"),
            ("--config", "ssdlite_mobilevitv3-xxs", "--backbone"),
            (KINDS[0], "--int8"),
            (KINDS[0], "--calibration", "photos"),
            (KINDS[0], "--weight-type", "uint8"),
            (KINDS[0], "--int8", "--calibration", "photos", "--weight-type", "int4"),
            (KINDS[0], "--half-io"),
            (KINDS[0], "--opset", "16"),
            (KINDS[0], "--backbone", "--evaluate", "."),
            (KINDS[0], "--evaluate", "nowhere"),
            (KINDS[0], "--random-weights", "--out-indices", "2,3"),
        ],
        ids=" ".join,
    )
    def test_wrong_usage(self, args, tmp_path):
        assert run(*args, "--out", tmp_path / "model.onnx").exit_code == 2

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("resnet50",), "unknown architecture 'resnet50'"),
            ((KINDS[0], "--checkpoint", "missing.pth"), "no checkpoint file at missing.pth"),
            ((KINDS[0], "--checkpoint", "other.onnx"), "other.onnx is an exported file, which has no weights to read"),
            ((KINDS[0], "--random-weights", "--backbone", "--out-indices", "last"), "such as 2,3,4; got 'last'"),
            (("--config", "ssdlite_mobilevitv3-xxs"), "a config has no weights"),
        ],
    )
    def test_failures_are_one_line(self, args, message, tmp_path):
        done = run(*args, "--out", tmp_path / "model.onnx")
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_directory_has_its_own_weights(self, tmp_path):
        done = run(tmp_path, "--random-weights", "--out", tmp_path / "model.onnx")
        assert done.exit_code == 1
        assert "holds weights of its own" in done.stderr


NODES = {"mobilevitv1_s": 303, "mobilevitv2_1_0": 277, "mobilevitv3_1_0": 285}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_plain(name, tmp_path):
    """Of a fixed size; of any, in test_any_batch_and_size_of_every_model."""
    path = tmp_path / "model.onnx"
    export_onnx(randomise(timm.create_model(name)), path, dynamic_batch=False, dynamic_size=False)
    assert_plain(path)
    assert len(onnx.load(path).graph.node) == NODES.get(name, len(onnx.load(path).graph.node))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_is_plain(name, tmp_path):
    path = tmp_path / "backbone.onnx"
    model = randomise(timm.create_model(name, features_only=True))
    export_onnx(model, path, input_size=(3, 128, 96), dynamic_batch=False)
    assert_plain(path)


@pytest.mark.parametrize("name", KINDS)
def test_traced_model_has_no_large_ranks(name):
    """What coremltools, pnnx and OpenVINO see of a model that torch.jit.trace recorded."""
    assert_traced_plain(shallow(name), torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", KINDS)
def test_exported_program_has_no_large_ranks_nor_group_norms(name):
    """What litert-torch, coremltools and ExecuTorch see of a model that torch.export recorded."""
    images = torch.rand(1, 3, 64, 64)
    model = shallow(name)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        assert not isinstance(value, torch.Tensor) or value.ndim <= 4
        assert "group_norm" not in str(node.target)


def test_file_says_where_it_comes_from_and_nothing_of_the_machine(tmp_path):
    export_onnx(Small(), tmp_path / "model.onnx", input_size=(3, 16, 16), dynamic_size=False)
    proto = onnx.load(tmp_path / "model.onnx")
    assert (proto.producer_name, proto.producer_version) == ("timm-mobilevit", timm_mobilevit.__version__)
    assert proto.ir_version == 8
    assert_plain(tmp_path / "model.onnx")


def test_class_names(tmp_path):
    names = prepare(timm.create_model(KINDS[0]), (3, 64, 64)).metadata["labels"]
    assert (len(names), names[0]) == (1000, "tench, Tinca tinca")
    own = shallow(KINDS[0], num_classes=2)
    assert "labels" not in prepare(own, (3, 64, 64)).metadata
    assert prepare(own, (3, 64, 64), ["cat", "dog"]).metadata["labels"] == ["cat", "dog"]
    with pytest.raises(ValueError, match="got 3 labels, but the model has 2 classes"):
        export_onnx(own, tmp_path / "own.onnx", labels=["cat", "dog", "cow"], input_size=(3, 64, 64))

"""Forms of an ONNX file: opset 17, half precision, pixels in, probabilities out."""

import json

import numpy as np
import pytest
import timm
import torch
from export_models import close, interface, run_file, shallow
from kinds import KINDS
from PIL import Image
from random_weights import randomise
from timm.data import create_transform, resolve_data_config
from timm.task import ClassificationTask
from torch import nn
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from benchmarks import digits  # noqa: E402
from benchmarks.digits_data import write_digits  # noqa: E402
from timm_mobilevit.cli import app  # noqa: E402
from timm_mobilevit.export import export_onnx  # noqa: E402
from timm_mobilevit.export._compare import HALF_TOLERANCE, make_images, relative_difference  # noqa: E402
from timm_mobilevit.export._half import to_half  # noqa: E402
from timm_mobilevit.export._opset17 import to_opset_17  # noqa: E402
from timm_mobilevit.export.runtimes import ExportedModel  # noqa: E402
from timm_mobilevit.network.layers import ConvNormAct  # noqa: E402

STATIC = {"dynamic_batch": False, "dynamic_size": False}
EXACT = {"InstanceNormalization", "LayerNormalization", "Softmax"}


def types_of(graph):
    """The data type of every tensor, by name."""
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph), strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.parametrize(
    ("name", "any_size"),
    [(KINDS[0], {"dynamic_size": False}), *(pytest.param(name, {}, marks=pytest.mark.long) for name in KINDS)],
)
def test_opset_17(name, any_size, tmp_path):
    """The export compares it with PyTorch, at two batches: maps are resized, heads split, means taken."""
    export_onnx(shallow(name), tmp_path / "model.onnx", input_size=(3, 72, 72), opset=17, **any_size)
    model = onnx.load(tmp_path / "model.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert {"Resize", "Split", "ReduceMean"} <= {node.op_type for node in model.graph.node}
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


class TestOpset17:
    def rewrite(self, node, **constants):
        """A graph of one node, in opset 17, and its output of 0, 1, …, 23 as [2, 3, 4]."""
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
        tensors = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
        graph = helper.make_graph([node], "one", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        images = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})
        to_opset_17(model)
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
        after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})
        for ours, theirs in zip(after, before, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("name", ["Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"])
    def test_reductions(self, name):
        self.rewrite(helper.make_node(f"Reduce{name}", ["x", "axes"], ["y"], keepdims=0), axes=[1, 2])
        self.rewrite(helper.make_node(f"Reduce{name}", ["x"], ["y"]))

    def test_sum_has_had_its_axes_as_an_input_before(self):
        self.rewrite(helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1), axes=[1])

    def test_split(self):
        self.rewrite(helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3))
        self.rewrite(helper.make_node("Split", ["x", "parts"], ["a", "b"], axis=2), parts=[1, 3])
        with pytest.raises(onnx.shape_inference.InferenceError):  # never silently other parts
            self.rewrite(helper.make_node("Split", ["x"], ["a", "b", "c"], axis=2, num_outputs=3))

    @pytest.mark.parametrize(
        ("node", "constants"),
        [
            (helper.make_node("Resize", ["x", "", "by"], ["y"], mode="linear", antialias=1), {"by": [1.0, 0.5, 0.5]}),
            (helper.make_node("ReduceMean", ["x", "axes"], ["y"], noop_with_empty_axes=1), {"axes": [1]}),
        ],
        ids=["antialias", "noop"],
    )
    def test_what_it_cannot_say(self, node, constants):
        constants = {key: np.array(value, np.float32 if key == "by" else np.int64) for key, value in constants.items()}
        with pytest.raises(ValueError, match=f"opset 17 has no {node.op_type} with"):
            self.rewrite(node, **constants)


@pytest.mark.parametrize(("name", "half_io"), [(KINDS[0], False), (KINDS[1], True)])
def test_half(name, half_io, tmp_path):
    path = tmp_path / "half.onnx"
    model = shallow(name)
    difference = export_onnx(model, path, input_size=(3, 64, 64), half=True, half_io=half_io, **STATIC)
    assert 1e-6 < difference < HALF_TOLERANCE
    graph = onnx.load(path).graph
    types = types_of(graph)
    expected = TensorProto.FLOAT16 if half_io else TensorProto.FLOAT
    assert [types[name] for name in ("images", "logits")] == [expected] * 2
    weighted = {"Conv", "Gemm", "MatMul", "Mul", "Add", "Sigmoid"}
    assert {types[name] for node in graph.node if node.op_type in weighted for name in node.input} == {
        TensorProto.FLOAT16
    }
    assert {types[name] for node in graph.node if node.op_type in EXACT for name in node.input} == {TensorProto.FLOAT}
    # On x86, ONNX Runtime computes in float32 and rounds. The reference rounds every product and sum.
    images = make_images((1, 3, 64, 64))
    (logits,) = onnx.reference.ReferenceEvaluator(str(path)).run(
        None, {"images": images.numpy().astype(np.float16 if half_io else np.float32)}
    )
    with torch.inference_mode():
        assert relative_difference(model(images), logits) < HALF_TOLERANCE


@pytest.mark.long
def test_half_of_any_size_with_several_outputs(tmp_path):
    path = tmp_path / "backbone.onnx"
    model = timm.create_model(KINDS[0], features_only=True, out_indices=(1, 4)).eval()
    export_onnx(model, path, input_size=(3, 64, 64), half=True, opset=17)
    images = torch.rand(2, 3, 96, 70)
    with torch.inference_mode():
        for actual, expected in zip(run_file(path, images).values(), model(images), strict=True):
            assert relative_difference(expected, actual) < HALF_TOLERANCE


def test_what_follows_the_last_weights_keeps_its_precision():
    """1000 + 0.1 has no float16: an offset of a box in pixels."""
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in "xabcdyz"]
    tensors = {"w": 1.0, "k": 0.1, "n": 1000.0}
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "k"], ["a"], "before"),
            helper.make_node("Conv", ["a", "w"], ["b"], "conv"),
            helper.make_node("Add", ["b", "n"], ["c"], "after"),
            helper.make_node("Neg", ["c"], ["d"], "then"),
            helper.make_node("Neg", ["d"], ["y"], "last"),
            helper.make_node("Identity", ["c"], ["z"], "too"),
        ],
        "boxes",
        [shapes[0]],
        shapes[-2:],
        [numpy_helper.from_array(np.full((1, 1, 1, 1), value, np.float32), name) for name, value in tensors.items()],
        value_info=shapes[1:5],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    half = to_half(model, half_io=False)
    onnx.checker.check_model(half, full_check=True)
    session = onnxruntime.InferenceSession(half.SerializeToString())
    outputs = session.run(["y", "z"], {"x": np.ones((1, 1, 1, 1), np.float32)})
    np.testing.assert_allclose(np.ravel(outputs), 1000.1, atol=1e-3)
    assert [n.op_type for n in half.graph.node] == ["Cast", "Mul", "Conv", "Cast", "Add", "Neg", "Neg", "Identity"]


class Classifier(nn.Module):
    """Quick to export."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.conv = randomise(ConvNormAct(3, 10, 3, stride=2))

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_pixels_in_and_probabilities_out(tmp_path):
    """From a decoded picture, with nothing to do about it, to what timm's transform and softmax give."""
    path = tmp_path / "model.onnx"
    model = Classifier().eval()
    model.pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.2), "crop_pct": 1}
    export_onnx(model, path, input_size=(3, 64, 64), softmax=True, image_input=True)
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert facts["input_size"] == [3, 64, 64]
    assert (facts["mean"], facts["std"]) == ([0, 0, 0], [1, 1, 1])  # nothing is left to do
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=model.pretrained_cfg))
    with torch.inference_mode():
        expected = model(transform(Image.fromarray(pixels))[None]).softmax(-1)
    outputs = run_file(path, torch.from_numpy(pixels)[None])
    assert list(outputs) == ["probabilities"]
    close(outputs["probabilities"], expected)
    tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2) / 255
    close(ExportedModel(path)(tensor).softmax(1).numpy(), expected)  # as evaluate and predict see it
    pixels = torch.randint(256, (3, 70, 101, 3), dtype=torch.uint8)  # and of any other size
    assert run_file(path, pixels)["probabilities"].shape == (3, 10)


class Segmentor(nn.Module):
    """Whatever names its output logits has its classes in dimension 1."""

    output_names = ("logits",)

    def __init__(self):
        super().__init__()
        self.conv = ConvNormAct(3, 4, 3, apply_act=False)
        self.eval()

    def forward(self, x):
        return self.conv(x)


def test_a_probability_of_zero_is_a_finite_logit(tmp_path):
    model = Classifier().eval()
    model.conv.bn.bias.data[0] = -1000
    model.conv.act = nn.Identity()
    export_onnx(model, tmp_path / "model.onnx", input_size=(3, 16, 16), softmax=True, **STATIC)
    images = torch.rand(1, 3, 16, 16)
    assert run_file(tmp_path / "model.onnx", images)["probabilities"][0, 0] == 0
    assert ExportedModel(tmp_path / "model.onnx")(images).isfinite().all()


def test_probabilities_of_every_pixel(tmp_path):
    export_onnx(Segmentor(), tmp_path / "model.onnx", input_size=(3, 16, 16), softmax=True)
    probabilities = run_file(tmp_path / "model.onnx", torch.rand(2, 3, 16, 16))["probabilities"]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softmax": True}, "softmax is for logits, but .* gives feature_0, feature_1"),
        ({"image_input": True}, "image_input needs the mean and std of the images"),
    ],
)
def test_what_makes_no_sense(options, message, tmp_path):
    model = timm.create_model(KINDS[0], features_only=True, out_indices=(0, 1))
    model.pretrained_cfg = {}
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "model.onnx", input_size=(3, 64, 64), **options)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("an older file")
    forms = ("--opset", "17", "--half", "--half-io", "--softmax", "--image-input", "--force")
    args = ("export", "onnx", KINDS[0], "--random-weights", "--img-size", "64", "--static", *forms, "--out", str(path))
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    pixels = torch.randint(256, (1, 64, 64, 3), dtype=torch.uint8)
    assert run_file(path, pixels)["probabilities"].sum() == pytest.approx(1, abs=1e-3)
    assert interface(path) == {"images": ("UINT8", [1, 64, 64, 3]), "probabilities": ("FLOAT16", [1, 1000])}
    model = onnx.load(path)
    assert [opset.version for opset in model.opset_import] == [17]
    assert {t.data_type for t in model.graph.initializer if len(t.dims) == 4} == {TensorProto.FLOAT16}


@pytest.mark.long
@pytest.mark.parametrize("name", [KINDS[0], "mobilevitv2_1_0"])
def test_half_reads_digits_as_well(name, tmp_path):
    """Top-1 within half a point on the held-out scans, after a short training."""
    data = write_digits(tmp_path / "digits")
    torch.manual_seed(0)
    overlay = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    model = timm.create_model(name, num_classes=10, pretrained_cfg_overlay=overlay)
    loaders = digits.make_loaders(data, resolve_data_config({}, model=model), batch_size=32)
    digits.train(ClassificationTask(model), loaders, epochs=3, lr=4e-3)
    model.eval()
    export_onnx(model, tmp_path / "half.onnx", input_size=(3, 64, 64), half=True, half_io=True, dynamic_size=False)
    right = {"float": 0, "half": 0}
    for images, labels in loaders[1]:
        with torch.inference_mode():
            right["float"] += int((model(images).argmax(1) == labels).sum())
        logits = run_file(tmp_path / "half.onnx", images.half())["logits"]
        right["half"] += int((logits.argmax(1) == labels.numpy()).sum())
    count = len(loaders[1].dataset)
    assert right["float"] > 0.5 * count
    assert abs(right["half"] - right["float"]) <= 0.005 * count

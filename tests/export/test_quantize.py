"""Eight-bit ONNX: what is quantized, what is not, how close it stays, and what is refused."""

import json
import shutil
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from export_models import shallow_zoo
from PIL import Image
from random_weights import randomise

onnx = pytest.importorskip("onnx", reason='needs the extra: pip install "timm-mobilevit[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra: pip install "timm-mobilevit[onnx]"')

from timm_mobilevit.cli import _export_options  # noqa: E402
from timm_mobilevit.export import quantize  # noqa: E402
from timm_mobilevit.export._calibration import check_correlation, draw_images  # noqa: E402
from timm_mobilevit.export.files import export_onnx  # noqa: E402
from timm_mobilevit.export.quantize import (  # noqa: E402
    WEIGHT_TYPES,
    quantize_onnx,
)
from timm_mobilevit.variants import VARIANTS  # noqa: E402

SIZE = 64
SMALLEST = {
    separable: min(
        (name for name in timm.list_models(module="mobilevit_zoo") if VARIANTS[name].separable == separable),
        key=lambda name: sum(VARIANTS[name].widths),
    )
    for separable in (False, True)
}


def write_images(folder, count=6):
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def run(path, images, name="images", exact_sums=False):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(exact_sums)))
    return onnxruntime.InferenceSession(path, options).run(None, {name: images})[0]


def constants(path):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", params=SMALLEST, ids=SMALLEST.values())
def pair(request, images, tmp_path_factory):
    """A file before and after quantization."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    with shallow_zoo():
        model = randomise(timm.create_model(SMALLEST[request.param], num_classes=10))
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export_onnx(model, fp32, input_size=(3, SIZE, SIZE), dynamic_size=False)
    quantize_onnx(fp32, int8, images)
    return fp32, int8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A file that is quickly made: a convolution of images of any size, with the metadata of an export."""

    def make(shape=("batch", 3, 8, 8), metadata=None):
        helper, value = onnx.helper, onnx.helper.make_tensor_value_info
        weight = np.array([[1, 1, 1], [0, -1, 0]], dtype=np.float32)[..., None, None]  # [outputs, channels, 1, 1]
        weight = onnx.numpy_helper.from_array(weight, "weight")
        graph = helper.make_graph(
            [helper.make_node("Conv", ["pixels", "weight"], ["maps"], name="conv")],
            "tiny",
            [value("pixels", onnx.TensorProto.FLOAT, shape)],
            [value("maps", onnx.TensorProto.FLOAT, [None] * 4)],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        size = {"input_size": [3, 8, 8], "crop_pct": 1.0}
        metadata = {"mean": [0, 0, 0], "std": [1, 1, 1], **size} if metadata is None else metadata
        helper.set_model_props(model, {key: json.dumps(entry) for key, entry in metadata.items()})
        path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
        onnx.save(model, path)
        return path

    return make


class TestFile:
    def test_answers_nearly_as_before(self, pair):
        x = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).numpy()
        before, after = (run(path, x) for path in pair)
        assert not np.array_equal(before, after)
        # Random weights say little about an image, so the noise is large; trained ones: benchmarks.exports.
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.8

    def test_is_smaller_and_keeps_its_metadata_and_interface(self, pair):
        before, after = (onnx.load(path) for path in pair)
        assert pair[1].stat().st_size < 0.7 * pair[0].stat().st_size
        assert {p.key: p.value for p in after.metadata_props} == {p.key: p.value for p in before.metadata_props} != {}
        for side in ("input", "output"):
            tensors = [getattr(model.graph, side)[0] for model in (before, after)]
            assert len({(t.name, t.type.tensor_type.elem_type) for t in tensors}) == 1

    def test_has_only_standard_operators(self, pair):
        model = onnx.load(pair[1])
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert [opset.domain for opset in model.opset_import] == [""]

    def test_computes_convolutions_linear_layers_and_silu_in_eight_bits_but_no_attention_or_norm(self, pair):
        graph = onnx.load(pair[1]).graph
        dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        weights = {node.output[0] for node in onnx.load(pair[0]).graph.node if node.op_type == "Constant"}
        weights |= {tensor.name for tensor in onnx.load(pair[0]).graph.initializer}
        nodes = {kind: [n for n in graph.node if n.op_type == kind] for kind in {n.op_type for n in graph.node}}
        sigmoids = {n.output[0] for n in nodes["Sigmoid"]}
        assert nodes["Conv"]
        assert sigmoids
        for node in nodes["Conv"] + nodes["Sigmoid"] + nodes["Gemm"]:
            assert dequantized.issuperset(node.input)
        quantized = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
        for kind in ("Softmax", "ReduceSum", "LayerNormalization", "InstanceNormalization"):
            for node in nodes.get(kind, ()):
                assert not (dequantized.issuperset(node.input[:1]) and quantized.issuperset(node.output)), kind
        products = {name for node in nodes.get("MatMul", ()) for name in node.output}
        assert not products & quantized  # the bias is added in float32
        matmuls = [dequantized.issuperset(n.input) for n in nodes.get("MatMul", ())]
        linear = sum(n.op_type == "MatMul" and n.input[1] in weights for n in onnx.load(pair[0]).graph.node)
        assert sum(matmuls) == linear

    def test_has_weights_of_seven_bits_with_a_scale_per_channel_and_unsigned_activations(self, pair):
        graph = onnx.load(pair[1]).graph
        tensors = constants(pair[1])
        dequantize = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        for node in (node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")):
            if not dequantize.keys() >= set(node.input[:2]):
                continue  # attention, or a matrix product of two activations
            activation, weight = (dequantize[name].input for name in node.input[:2])
            assert tensors[weight[0]].dtype == np.int8
            assert np.abs(tensors[weight[0]].astype(int)).max() <= 64
            assert (tensors[activation[2]].dtype, tensors[activation[2]].shape) == (np.uint8, ())
            if node.op_type == "Conv":
                assert tensors[weight[1]].shape == (len(tensors[weight[0]]),)


class TestWeightTypes:
    """Two sums of products do not fit in 16 bits, the largest that ``int7`` weights can give does."""

    @pytest.fixture
    def saturating(self, tmp_path):
        """A convolution whose sums of eight-bit products are as large as they get, on white images."""
        weight = np.stack([np.ones(64), np.linspace(-1, 1, 64)]).astype(np.float32)[..., None, None]
        mix = np.ones((64, 3, 1, 1), dtype=np.float32)
        helper, value = onnx.helper, onnx.helper.make_tensor_value_info
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["images", "mix"], ["wide"], name="first"),
                helper.make_node("Conv", ["wide", "weight"], ["maps"], name="second"),
            ],
            "saturating",
            [value("images", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
            [value("maps", onnx.TensorProto.FLOAT, [None] * 4)],
            [onnx.numpy_helper.from_array(mix, "mix"), onnx.numpy_helper.from_array(weight, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        size = {"input_size": "[3, 8, 8]", "crop_pct": "1.0"}
        helper.set_model_props(model, {"mean": "[0, 0, 0]", "std": "[1, 1, 1]", **size})
        onnx.save(model, tmp_path / "fp32.onnx")
        (tmp_path / "images").mkdir()
        for level in (0, 85, 170, 255):
            Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / "images" / f"{level}.png")
        return tmp_path

    @pytest.mark.parametrize("weight_type", ["int7", "uint8"])
    def test_that_are_right_on_every_processor(self, saturating, weight_type):
        out = saturating / "out.onnx"
        loss = quantize_onnx(saturating / "fp32.onnx", out, saturating / "images", weight_type=weight_type)
        white = np.ones((1, 3, 8, 8), dtype=np.float32)
        assert np.array_equal(run(out, white), run(out, white, exact_sums=True))
        assert run(out, white)[0, 0] == pytest.approx(192, rel=0.02)
        assert loss.correlation > 0.999

    @pytest.mark.parametrize(
        ("weight_type", "dtype", "zero", "largest"),
        [("int7", np.int8, 0, 64), ("int8", np.int8, 0, 127), ("uint8", np.uint8, 128, 127)],
    )
    def test_store_symmetric_numbers(self, tiny, images, weight_type, dtype, zero, largest):
        out = tiny().with_name("out.onnx")
        quantize_onnx(tiny(), out, images, weight_type=weight_type)
        (weight,) = (tensor for tensor in constants(out).values() if tensor.ndim == 4)
        assert weight.dtype == dtype
        assert np.abs(weight.astype(int) - zero).max() == largest

    def test_are_those_of_the_command_line(self):
        choices, _ = get_args(_export_options.StoredAs)
        assert get_args(choices) == tuple(WEIGHT_TYPES)


class TestCorrelation:
    def test_is_that_of_the_worst_output(self):
        """Boxes may be noise beside scores that are right."""
        noise = np.random.default_rng(0).random((2, 16, 9))
        before = [[scores, boxes] for scores, boxes in zip(noise[0], noise[1], strict=True)]
        after = [[scores, boxes[::-1]] for scores, boxes in before]
        assert check_correlation(before, before).correlation == pytest.approx(1)
        with pytest.raises(ValueError, match=r"is -?0\.[0-4]\d+, expected at least 0\.8"):
            check_correlation(before, after)


class TestCalibration:
    def scale(self, path):
        """Scale of the input: its range over 255."""
        graph = onnx.load(path).graph
        (node,) = (n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "pixels")
        return next(float(onnx.numpy_helper.to_array(t)) for t in graph.initializer if t.name == node.input[1])

    def quantize(self, model, folder, **options):
        out = model.with_name("out.onnx")
        quantize_onnx(model, out, folder, **options)
        return self.scale(out)

    def test_reads_a_folder_without_classes(self, tiny, tmp_path):
        Image.new("RGB", (9, 9), (255, 0, 51)).save(tmp_path / "one.png")
        assert self.quantize(tiny(), tmp_path) == pytest.approx(1 / 255)

    def test_takes_the_range_of_all_images_drawn_evenly(self, tiny, tmp_path):
        for level in range(11):
            Image.new("RGB", (9, 9), (255 - 10 * level,) * 3).save(tmp_path / f"{level:02}.png")
        assert self.quantize(tiny(), tmp_path) == pytest.approx(1 / 255)
        for index in range(10):
            Image.new("RGB", (9, 9), (51, 51, 51)).save(tmp_path / f"{index:02}.png")
        assert self.quantize(tiny(), tmp_path, num_images=2) == pytest.approx(155 / 255**2)  # the first and the last
        assert self.quantize(tiny(), tmp_path, num_images=1) == pytest.approx(51 / 255**2)

    def test_reads_images_as_all_commands_do(self, tiny, tmp_path):
        grey = np.full((9, 9), 51 * 257, dtype=np.uint16)  # PIL's own conversion clips it to 255
        Image.fromarray(grey).save(tmp_path / "grey.png")
        assert self.quantize(tiny(), tmp_path) == pytest.approx(51 / 255**2)

    def test_turns_photographs(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3  # shown upside down
        pixels = np.zeros((8, 8), dtype=np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
        (image,) = draw_images({"input_size": (1, 8, 8), "mean": (0,), "std": (1,), "crop_pct": 1.0}, tmp_path, 1)
        assert (image == 1).nonzero().tolist() == [[0, 0, 7, 7]]

    @pytest.mark.parametrize("std", [0.5, 0.25])
    def test_preprocesses_as_the_metadata_say(self, tiny, tmp_path, std):
        Image.new("RGB", (9, 9), (255, 255, 255)).save(tmp_path / "white.png")
        model = tiny(metadata={"mean": [0, 0, 0], "std": [std] * 3, "input_size": [3, 8, 8]})
        assert self.quantize(model, tmp_path) == pytest.approx(1 / std / 255)

    def test_takes_decoded_pictures(self, tmp_path):
        model = timm.create_model(SMALLEST[False], num_classes=10, pretrained_cfg_overlay={"crop_pct": 1.0})
        model.pretrained_cfg |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
        folder, out = write_images(tmp_path / "images"), tmp_path / "model.onnx"
        loss = export_onnx(
            model, out, input_size=(3, SIZE, SIZE), dynamic_size=False, image_input=True, calibration=folder
        )
        assert loss.correlation > 0.8
        pixels = np.asarray(Image.open(folder / "class0" / "0.png"))[None]
        mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
        images = torch.tensor(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
        with torch.inference_mode():
            expected = model.eval()(images).numpy()
        assert onnx.load(out).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        found = run(out, pixels)
        assert 0.8 < np.corrcoef(found.ravel(), expected.ravel())[0, 1] < 1 - 1e-6

    def test_takes_the_size_from_the_metadata_where_the_file_takes_any(self, tiny, images):
        metadata = {"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 16, 24]}
        assert self.quantize(tiny(("batch", 3, "height", "width"), metadata), images) > 0


class TestRefuses:
    def check(self, error, message, model, folder, **options):
        out = model.with_name("out.onnx")
        before = sorted(model.parent.iterdir()) if model.parent.exists() else []
        with pytest.raises(error, match=message):
            quantize_onnx(model, out, folder, **options)
        assert (sorted(model.parent.iterdir()) if model.parent.exists() else []) == before

    def test_a_missing_folder(self, tiny, tmp_path):
        self.check(FileNotFoundError, "no folder .*: expected a folder of a hundred or so", tiny(), tmp_path / "none")

    def test_an_empty_folder(self, tiny, tmp_path):
        (tmp_path / "notes.txt").write_text("none")
        self.check(ValueError, r"no images in .*; expected files that end in .*\.png", tiny(), tmp_path)

    def test_an_image_that_cannot_be_read(self, tiny, images, tmp_path):
        shutil.copytree(images, tmp_path / "images")
        (tmp_path / "images" / "class0" / "0.png").write_bytes(b"no image")
        message = rf"cannot calibrate on {tmp_path}/images/class0/0\.png: not a readable image"
        self.check(ValueError, message, tiny(), tmp_path / "images")

    def test_a_missing_model(self, tmp_path, images):
        self.check(FileNotFoundError, "no ONNX file", tmp_path / "none.onnx", images)

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"input_size": [2, 8, 8], "mean": [0, 0], "std": [1, 1]}, "one channel or three, but this model takes 2"),
            ({"input_size": [3, 8, 8]}, "calibration needs the mean and std of the images"),
            ({}, r"tiny\.onnx does not say which images it takes; expected a file of `timm-mobilevit export`"),
        ],
    )
    def test_a_file_that_images_do_not_fit(self, tiny, images, metadata, message):
        self.check(ValueError, message, tiny(metadata=metadata), images)

    def test_no_images_at_all(self, tiny, images):
        self.check(ValueError, "num_images must be at least 1, got 0", tiny(), images, num_images=0)

    def test_an_unknown_weight_type(self, tiny, images):
        message = "weight_type must be one of int7, int8, uint8, got 'int4'"
        self.check(ValueError, message, tiny(), images, weight_type="int4")

    def test_a_file_that_is_too_far_from_its_float32_version(self, tiny, tmp_path):
        """Weights that are 150 times the third of their channel leave it no bits, and nearly cancel each other."""
        path = tiny()
        model = onnx.load(path)
        weight = np.array([[150, -150, 1], [150, -150, -1]], dtype=np.float32)[..., None, None]
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
        onnx.save(model, path)
        generator = np.random.default_rng(0)
        for index in range(4):
            pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            pixels[..., 0] = pixels[..., 1] + generator.integers(0, 2, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        message = r"file is not written: on 4 images of .*, the correlation .* is 0\.[4-7]\d*, .*Calibrate on"
        self.check(ValueError, message, path, tmp_path)

    def test_a_file_that_gives_the_same_everywhere(self, tiny, tmp_path):
        Image.new("RGB", (9, 9), (0, 0, 0)).save(tmp_path / "black.png")
        self.check(ValueError, "correlation .* is nan, .*not finite, or the same everywhere", tiny(), tmp_path)

    def test_says_that_sums_saturate(self, tiny, images, monkeypatch):
        run = quantize._run
        inverted = lambda *args, exact_sums=False: [[-x for x in row] for row in run(*args)]  # noqa: E731

        def saturating(path, images, *, exact_sums=False):
            return run(path, images) if exact_sums or path.name == "tiny.onnx" else inverted(path, images)

        monkeypatch.setattr(quantize, "_run", saturating)
        message = r"is -[01]\.\d+, expected at least 0.8; with exact sums it is [01]\.\d+, .*no VNNI.*int7 or uint8"
        self.check(ValueError, message, tiny(), images, weight_type="int8")

    def test_names_the_extra(self, tiny, images, monkeypatch):
        monkeypatch.setattr("timm_mobilevit.export._format.find_spec", lambda package: None)
        self.check(ImportError, r"timm-mobilevit\[onnx\]", tiny(), images)

    def test_keeps_the_old_file_when_it_fails(self, tiny, images, monkeypatch):
        model = tiny()
        out = model.with_name("out.onnx")
        out.write_text("old")
        from onnxruntime import quantization

        monkeypatch.setattr(quantization, "quantize_static", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantize_onnx(model, out, images)
        assert out.read_text() == "old"
        assert sorted(path.name for path in model.parent.iterdir()) == ["out.onnx", "tiny.onnx"]

"""Core ML packages: their interface, operators and ranks. Values are not compared: only Apple's systems run them."""

import json

import pytest
import timm
import torch
from random_weights import randomise
from torch import nn

import timm_mobilevit
from timm_mobilevit.export import export_model
from timm_mobilevit.network.layers import ConvNormAct
from timm_mobilevit.variants import VARIANTS

SIZE = 65  # maps of 33, 17, 9, 5 and 3 pixels: patches divide none, so that maps are resized
MODELS = timm.list_models(module="mobilevit_zoo")
# The smallest with each kind of attention.
SMALLEST = [
    min((name for name in MODELS if VARIANTS[name].separable == separable), key=lambda name: sum(VARIANTS[name].widths))
    for separable in (False, True)
]

# What the documentation of coremltools lists for iOS 15.
OPERATORS = {
    "add", "cast", "concat", "const", "conv", "layer_norm", "linear", "matmul", "mul", "reduce_mean", "reduce_sum",
    "relu", "reshape", "silu", "softmax", "split", "transpose", "upsample_bilinear",
}  # fmt: skip


@pytest.fixture
def ct():
    return pytest.importorskip("coremltools", reason='needs the extra: pip install "timm-mobilevit[coreml]"')


@pytest.fixture
def write(ct, tmp_path):
    """Exports a model and returns the specification in the package."""

    def write(model, input_size=(3, SIZE, SIZE), **options):
        path = tmp_path / "model.mlpackage"
        export_model(model, path, input_size=input_size, **options)
        assert list(tmp_path.iterdir()) == [path]
        return ct.models.MLModel(str(path), skip_model_load=True).get_spec()

    return write


class Tiny(nn.Module):
    """A classifier that is quickly converted."""

    def __init__(self, channels=3, **cfg):
        super().__init__()
        self.num_classes = 2
        self.pretrained_cfg = {"architecture": "tiny", "mean": [0.0] * channels, "std": [1.0] * channels, **cfg}
        self.conv = ConvNormAct(channels, 2, 3, apply_act=False)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def operations(spec):
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return block.operations


def check_model(model, write):
    """Norms are one operator each: a group norm would be ten, with a square that float16 does not hold."""
    spec = write(model)
    assert spec.WhichOneof("Type") == "mlProgram"
    assert spec.specificationVersion == 6  # iOS 15
    (image,) = spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", SIZE, SIZE)
    (output,) = spec.description.output
    assert (output.name, list(output.type.multiArrayType.shape)) == ("logits", [1, 10])
    assert {op.type for op in operations(spec)} <= OPERATORS
    assert max(value.type.tensorType.rank for op in operations(spec) for value in op.outputs) <= 4
    cfg = model.pretrained_cfg
    assert spec.description.metadata.shortDescription == f"{cfg['architecture']}.{cfg['tag']}"
    assert spec.description.metadata.license == cfg["license"]
    assert (spec.description.metadata.author, spec.description.metadata.versionString) == (
        "timm-mobilevit",
        timm_mobilevit.__version__,
    )
    assert image.shortDescription == f"RGB picture of {SIZE}×{SIZE} pixels"
    assert output.shortDescription.startswith("Logits")
    known = spec.description.metadata.userDefined
    assert json.loads(known["input_size"]) == [3, SIZE, SIZE]
    assert json.loads(known["architecture"]) == cfg["architecture"]
    assert "com.apple.coreml.model.preview.type" not in known


@pytest.mark.parametrize("name", SMALLEST)
def test_models_need_few_operators_and_four_dimensions(write, name):
    check_model(randomise(timm.create_model(name, num_classes=10)), write)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(MODELS) - set(SMALLEST)))
def test_all_models_need_few_operators_and_four_dimensions(write, name):
    check_model(randomise(timm.create_model(name, num_classes=10)), write)


@pytest.mark.long
def test_backbone_has_an_output_per_map(write):
    model = timm.create_model(SMALLEST[0], features_only=True, out_indices=(2, 4))
    description = write(model).description
    outputs = {o.name: list(o.type.multiArrayType.shape) for o in description.output}
    assert [o.shortDescription.split(", ")[-1] for o in description.output] == [
        "8 times smaller than the image",
        "32 times smaller than the image",
    ]
    expected = [list(feature.shape) for feature in model.eval()(torch.zeros(1, 3, SIZE, SIZE))]
    assert outputs == dict(zip(("feature_0", "feature_1"), expected, strict=True))


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["cat", "dog"], None, ["cat", "dog"]),
        (["cat", "dog"], ["Katze", "Hund"], ["Katze", "Hund"]),
        ({"1": "dog"}, None, ["0", "dog"]),
        (["crane", "crane"], None, ["crane (0)", "crane (1)"]),  # as two of ImageNet's; probabilities are by name
    ],
)
def test_known_class_names_make_a_classifier(write, names, labels, expected):
    spec = write(Tiny(label_names=names), labels=labels)
    description = spec.description
    assert (description.predictedFeatureName, description.predictedProbabilitiesName) == (
        "classLabel",
        "classLabel_probs",
    )
    assert {output.name for output in description.output} == {"classLabel", "classLabel_probs"}
    assert all(output.shortDescription for output in description.output)
    assert description.metadata.userDefined["com.apple.coreml.model.preview.type"] == "imageClassifier"
    known = [name.partition(" (")[0] for name in expected]
    assert json.loads(description.metadata.userDefined["labels"]) == known
    *_, classify = operations(spec)
    classes = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    assert [c.immediateValue.tensor.strings.values[0] for c in classes] == expected
    assert "softmax" in {op.type for op in operations(spec)}


def test_pixels_are_divided_by_255_and_normalised_as_the_configuration_says(write):
    def first_operations(model):
        spec = write(model, half=False)
        constants = {
            op.outputs[0].name: list(op.attributes["val"].immediateValue.tensor.floats.values)
            for op in operations(spec)
            if op.type == "const"
        }
        steps = [op for op in operations(spec) if op.type in ("mul", "sub", "real_div", "conv")]
        end = [op.type for op in steps].index("conv")
        return [(op.type, constants[op.inputs["y"].arguments[0].name]) for op in steps[:end]]

    scale = ("mul", [pytest.approx(1 / 255)])
    assert first_operations(Tiny()) == [scale]
    mean, std = [0.25, 0.5, 0.75], [0.5, 0.25, 0.5]
    assert first_operations(Tiny(mean=mean, std=std)) == [scale, ("sub", mean), ("mul", [2.0, 4.0, 2.0])]


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_of_the_image_follows_the_channels(ct, write, channels):
    (image,) = write(Tiny(channels), input_size=(channels, 8, 12)).description.input
    space = image.type.imageType.ColorSpace.Name(image.type.imageType.colorSpace)
    assert space == {1: "GRAYSCALE", 3: "RGB"}[channels]
    assert (image.type.imageType.height, image.type.imageType.width) == (8, 12)


@pytest.mark.parametrize("half", [True, False])
def test_computes_in_the_precision_asked_for(write, half):
    (conv,) = (op for op in operations(write(Tiny(), half=half)) if op.type == "conv")
    kind = conv.outputs[0].type.tensorType
    assert kind.dataType == (10 if half else 11)  # FLOAT16 and FLOAT32 in MIL.proto


def test_replaces_a_package(write):
    write(Tiny(label_names=["cat", "dog"]))
    assert [output.name for output in write(Tiny()).description.output] == ["logits"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.mlmodel", {}, "ends in .mlpackage"),
        ("model.mlpackage", {"input_size": (2, 64, 64)}, "one channel or three"),
        ("model.mlpackage", {"input_size": (3, 64)}, "channels, height and width"),
        ("model.mlpackage", {"labels": ["cat"]}, "got 1 labels, but the model has 2 classes"),
    ],
)
def test_refuses(ct, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(Tiny(options.get("input_size", (3,))[0]), tmp_path / name, "coreml", **options)
    assert list(tmp_path.iterdir()) == []

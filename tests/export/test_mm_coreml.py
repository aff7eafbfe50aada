"""Core ML packages of detectors and segmentors: what Vision and Xcode read in them. Only Apple's systems run them."""

import json

import pytest
import timm
import torch
from mm_models import SMALL, detector, segmentor
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.export import export_model
from timm_mobilevit.export._vision import ForVision
from timm_mobilevit.export.mm import ExportableDetector, ExportableSegmentor

ct = pytest.importorskip("coremltools", reason="needs the extra coreml")
NAMES = ["cat", "dog", "bird"]


def read(path):
    return ct.models.MLModel(str(path), skip_model_load=True).get_spec()


def write(network, path, **options):
    network.export_metadata["labels"] = NAMES
    export_model(network.eval(), path, input_size=(3, 64, 96), **options)
    return read(path)


@pytest.mark.parametrize("classes_together", [False, pytest.param(True, marks=pytest.mark.long)])
def test_detector_has_a_suppression_that_vision_understands(tmp_path, classes_together):
    kind = {"type": "nms", "iou_threshold": 0.35, "class_agnostic": classes_together}
    model = detector(nms=kind, score_thr=0.2)
    spec = write(ExportableDetector(model), tmp_path / "ssd.mlpackage", suppress=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "ssd.mlpackage"]
    assert spec.specificationVersion == 6  # iOS 15
    network, suppression = spec.pipeline.models
    assert network.WhichOneof("Type") == "mlProgram"
    (block,) = network.mlProgram.functions["main"].block_specializations.values()
    assert max(value.type.tensorType.rank for op in block.operations for value in op.outputs) <= 4

    image, *thresholds = spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 96, 64)
    assert [(value.name, value.type.isOptional) for value in thresholds] == [
        ("iouThreshold", True),
        ("confidenceThreshold", True),
    ]
    sizes = {
        output.name: [(s.lowerBound, s.upperBound) for s in output.type.multiArrayType.shapeRange.sizeRanges]
        for output in spec.description.output
    }
    assert sizes == {"confidence": [(0, -1), (3, 3)], "coordinates": [(0, -1), (4, 4)]}
    assert all(output.shortDescription for output in spec.description.output)

    nms = suppression.nonMaximumSuppression
    assert list(nms.stringClassLabels.vector) == NAMES
    assert (nms.iouThreshold, nms.confidenceThreshold, nms.pickTop.perClass) == (0.35, 0.2, not classes_together)
    anchors = {o.name: list(o.type.multiArrayType.shape) for o in network.description.output}
    assert anchors[nms.confidenceInputFeatureName][1:] == [3]
    assert anchors[nms.coordinatesInputFeatureName][1:] == [4]
    assert {nms.confidenceOutputFeatureName, nms.coordinatesOutputFeatureName} == set(sizes)
    assert json.loads(spec.description.metadata.userDefined["labels"]) == NAMES


def test_detections_are_centres_and_sizes_of_the_boxes():
    network = ExportableDetector(detector()).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        boxes, scores = network(images)
        confidence, coordinates = ForVision(network)(images)
    centre, size = coordinates.split(2, dim=1)
    torch.testing.assert_close(torch.cat([centre - size / 2, centre + size / 2], dim=1), boxes[0])
    assert torch.equal(confidence, scores[0])


def test_preview_of_a_segmentor(tmp_path):
    model = segmentor(SMALL, "deeplabv3", 3, output_stride=16, rates=(6, 12, 18), auxiliary=False)
    model.data_preprocessor._channel_conversion = True
    network = ExportableSegmentor(model)
    network.export_metadata["palette"] = [[0, 0, 0], [255, 0, 128], [1, 2, 3]]
    known = write(network, tmp_path / "seg.mlpackage").description.metadata.userDefined
    assert known["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    assert json.loads(known["com.apple.coreml.model.preview.params"]) == {
        "labels": NAMES,
        "colors": ["#000000", "#ff0080", "#010203"],
    }


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: timm.create_model(SMALL, num_classes=3),
            "suppress is for detectors of timm_mobilevit.export.mm",
        ),
        (
            lambda: ExportableDetector(detector(nms={"type": "soft_nms", "iou_threshold": 0.5})),
            "the suppression of this detector is {'type': 'soft_nms'.*export it with --raw",
        ),
    ],
)
def test_refuses(network, message, tmp_path):
    network = network()
    network.export_metadata = {**getattr(network, "export_metadata", {}), "labels": NAMES}
    with pytest.raises(ValueError, match=message):
        export_model(network.eval(), tmp_path / "ssd.mlpackage", input_size=(3, 64, 64), suppress=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "outputs"), [((), ["confidence", "coordinates"]), (("--raw",), ["boxes", "scores"])]
)
def test_command(options, outputs, tmp_path):
    path = tmp_path / "ssd.mlpackage"
    arguments = ["export", "coreml", "--config", "ssdlite_mobilevitv3-xxs", "--random-weights", *options]
    done = CliRunner().invoke(app, [*arguments, "--img-size", "64", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert "Not verified: Core ML runs on Apple's systems only." in done.output
    assert [output.name for output in read(path).description.output] == outputs

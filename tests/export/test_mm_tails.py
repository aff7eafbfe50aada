"""ONNX files that give detections and classes: those of the model's own predict."""

import json
import shutil

import numpy as np
import pytest
import torch
from export_models import shallow_zoo
from mm_models import SMALL, detector, segmentor
from mmdet.structures import DetDataSample
from mmseg.structures import SegDataSample
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.export import export_model, tails
from timm_mobilevit.export._network import prepare
from timm_mobilevit.export.mm import ExportableDetector, ExportableSegmentor

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

# As CVNets v0.2 and v0.1 evaluate, and with limits that few images reach.
RULES = {
    "v0.2": {},
    "v0.1": {"nms_pre": -1, "max_per_class": 200, "max_per_img": -1, "score_thr": 0.05},
    "tight": {"nms_pre": 9, "max_per_class": 4, "max_per_img": 7, "nms": {"type": "nms", "iou_threshold": 0.3}},
    "of all classes together": {"nms": {"type": "nms", "iou_threshold": 0.4, "class_agnostic": True}},
    "everything": {"nms_pre": -1, "max_per_img": -1, "score_thr": 0.0},
}


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "images"
    return [output.name for output in session.get_outputs()], session.run(None, {"images": images.numpy()})


def run_in_openvino(path, images):
    openvino = pytest.importorskip("openvino", reason="reads ONNX files too")
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = model({"images": images.numpy()})
    return [output.any_name for output in model.outputs], [outputs[output] for output in model.outputs]


RUNTIMES = pytest.mark.parametrize("run", [run, run_in_openvino], ids=["onnxruntime", "openvino"])


def predicted(model, images):
    """Boxes, scores and labels that the detector itself finds in one image."""
    shape = tuple(images.shape[-2:])
    meta = {"img_shape": shape, "batch_input_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
    with torch.inference_mode():
        (sample,) = model.predict(images, [DetDataSample(metainfo=meta)])
    found = sample.pred_instances
    return found.bboxes, found.scores, found.labels


def assert_same(actual, expected):
    for one, other, tolerance in zip(actual, expected, (1e-2, 1e-4, 0), strict=True):  # of pixels: 1e-4 of the image
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=tolerance)


STATIC = {"dynamic_batch": False, "dynamic_size": False}
SIZE = (3, 96, 64)


def make_detector(rule):
    """The weights are the same for every rule."""
    torch.manual_seed(295)  # boxes of all three classes are left under every rule, and no two scores are close
    with shallow_zoo():
        return detector(**rule)


def test_without_a_suppression(tmp_path):
    """mmdet takes ``nms=None``: the file has raw outputs, or the message says to export these."""
    model = detector(nms=None)
    network = ExportableDetector(model)
    assert network.export_metadata["nms"] == {"type": None}
    network.input_size = SIZE
    with pytest.raises(ValueError, match="export it with --raw"):
        export_model(network, tmp_path / "model.onnx", suppress=True, **STATIC)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The file without suppression."""
    path = tmp_path_factory.mktemp("raw") / "raw.onnx"
    export_model(ExportableDetector(make_detector(RULES["v0.2"])), path, input_size=SIZE, **STATIC)
    return path


def with_rule(rule, raw, path):
    """A detector, and its file: the rule attached to the network that all rules share."""
    model = make_detector(rule)
    shutil.copy(raw, path)
    network = prepare(ExportableDetector(model), SIZE)
    tails.attach(tails.find_tail(network, suppress=True), network, path)
    return model


@pytest.fixture(scope="module", params=RULES, ids=list(RULES))
def suppressed(request, raw, tmp_path_factory):
    """A detector and its file, of the first rule exported at once."""
    path = tmp_path_factory.mktemp("ssd") / "ssd.onnx"
    if request.param != "v0.2":
        return with_rule(RULES[request.param], raw, path), path
    model = make_detector(RULES[request.param])
    export_model(ExportableDetector(model), path, input_size=SIZE, suppress=True, **STATIC)
    return model, path


def metadata_of(session):
    return {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}


class TestSuppression:
    @RUNTIMES
    def test_same_boxes_in_the_same_order_as_predict(self, suppressed, run):
        model, path = suppressed
        for _ in range(3):
            images = torch.rand(1, 3, 96, 64)
            names, outputs = run(path, images)
            expected = predicted(model, images)
            assert names == ["boxes", "scores", "labels"]
            assert len(expected[0]) > 5
            assert len(set(expected[2].tolist())) == 3
            assert_same(outputs, expected)

    def test_metadata_alone_give_them(self, suppressed, raw):
        model, path = suppressed
        images = torch.rand(1, 3, 96, 64)
        raw = onnxruntime.InferenceSession(raw)
        settings = metadata_of(onnxruntime.InferenceSession(path))
        boxes, scores = (torch.from_numpy(output[0]) for output in raw.run(None, {"images": images.numpy()}))
        assert_same(tails.Suppression(settings)(boxes[None], scores[None], images), predicted(model, images))
        assert settings.pop("suppressed") is True
        assert settings.pop("outputs") == ["boxes", "scores", "labels"]
        # Those of the file without suppression are as many, with the rule of its detector.
        assert settings.keys() | {"outputs"} == metadata_of(raw).keys()

    def test_one_standard_operator_suppresses(self, suppressed):
        import onnx

        proto = onnx.load(suppressed[1])
        assert {node.domain for node in proto.graph.node} == {""}
        assert [node.op_type for node in proto.graph.node].count("NonMaxSuppression") == 1
        assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)

    def test_nothing_found(self, raw, tmp_path):
        path = tmp_path / "none.onnx"
        with_rule({"score_thr": 1.0}, raw, path)
        _, (boxes, scores, labels) = run(path, torch.rand(1, 3, 96, 64))
        assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))

    @pytest.mark.parametrize(
        ("settings", "options", "message"),
        [
            (
                {"nms": {"type": "soft_nms", "iou_threshold": 0.5}},
                {},
                r"is {'type': 'soft_nms'.*expected dict\(type='nms'",
            ),
            (
                {"nms": {"type": "nms", "iou_threshold": 0.5, "class_agnostic": True}, "max_per_class": 5},
                {},
                "max_per_class=5 goes with a suppression per class",
            ),
            ({}, {"suppress": False, "argmax": True}, "argmax is for the task semantic-segmentation"),
        ],
    )
    def test_what_cannot_be_suppressed(self, settings, options, message, tmp_path):
        network = ExportableDetector(detector(**settings))
        with pytest.raises(ValueError, match=message):
            export_model(
                network, tmp_path / "a.onnx", input_size=(3, 64, 64), **{"suppress": True, **STATIC, **options}
            )
        assert not list(tmp_path.iterdir())

    def test_a_file_that_finds_something_else_is_not_kept(self, tmp_path, monkeypatch):
        translate = tails.translate

        def wrong(tail, *args):
            tail.overlap /= 4
            proto = translate(tail, *args)
            tail.overlap *= 4
            return proto

        monkeypatch.setattr(tails, "translate", wrong)
        with pytest.raises(RuntimeError, match="% of them all are not in both"):
            export_model(
                ExportableDetector(detector()), tmp_path / "a.onnx", input_size=(3, 64, 64), suppress=True, **STATIC
            )
        assert not list(tmp_path.iterdir())

    def test_detections_in_another_order_are_refused(self):
        settings = {"score_thr": 0.1, "iou_threshold": 0.5, "nms_pre": -1, "max_per_class": -1, "max_per_img": 100}
        tail = tails.Suppression(settings)
        raw = [torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]]]), torch.tensor([[[0.9], [0.7]]])]
        image = torch.zeros(1, 3, 8, 8)
        found = [output.numpy() for output in tail(*raw, image)]
        tail.check(raw, image, found)
        with pytest.raises(RuntimeError, match="finds 2 boxes, PyTorch 2"):
            tail.check(raw, image, [output[::-1] for output in found])

    @pytest.mark.long
    def test_any_size(self, tmp_path):
        model = detector()
        path = tmp_path / "ssd.onnx"
        export_model(ExportableDetector(model), path, input_size=(3, 288, 288), suppress=True)
        images = torch.rand(1, 3, 320, 256)
        assert_same(run(path, images)[1], predicted(model, images))


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A segmentor and its file."""
    with shallow_zoo():
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), auxiliary=False).eval()
    model.data_preprocessor._channel_conversion = True
    path = tmp_path_factory.mktemp("seg") / "seg.onnx"
    export_model(ExportableSegmentor(model), path, input_size=(3, 64, 96), dynamic_size=False, argmax=True)
    return model, path


@RUNTIMES
def test_classes_of_a_segmentor(run, classified):
    model, path = classified
    images = torch.rand(2, 3, 64, 96)
    names, (classes,) = run(path, images)
    meta = {"ori_shape": (64, 96), "img_shape": (64, 96), "pad_shape": (64, 96)}
    with torch.inference_mode():
        results = model.predict(images, [SegDataSample(metainfo=meta) for _ in range(2)])
    assert names == ["classes"]
    expected = torch.cat([result.pred_sem_seg.data for result in results]).numpy()
    assert classes.shape == expected.shape
    assert (classes == expected).mean() > 0.999  # a pixel can lie between two classes


class TestCommand:
    def invoke(self, out, *options):
        command = [
            "export",
            "onnx",
            *options,
            "--random-weights",
            "--fixed-size",
            "--img-size",
            "64",
            "--out",
            str(out),
        ]
        return CliRunner().invoke(app, command)

    def outputs(self, path):
        return [output.name for output in onnxruntime.InferenceSession(path).get_outputs()]

    def test_a_detector_gives_detections_by_default(self, tmp_path):
        done = self.invoke(tmp_path / "ssd.onnx", "--config", "ssdlite_mobilevitv3-xxs")
        assert done.exit_code == 0, done.output
        assert self.outputs(tmp_path / "ssd.onnx") == ["boxes", "scores", "labels"]

    def test_raw(self, tmp_path):
        done = self.invoke(tmp_path / "ssd.onnx", "--config", "ssdlite_mobilevitv3-xxs", "--raw")
        assert done.exit_code == 0, done.output
        assert self.outputs(tmp_path / "ssd.onnx") == ["boxes", "scores"]

    def test_argmax(self, tmp_path):
        done = self.invoke(tmp_path / "seg.onnx", "--config", "deeplabv3_mobilevitv3-0.5-d16", "--argmax")
        assert done.exit_code == 0, done.output
        assert self.outputs(tmp_path / "seg.onnx") == ["classes"]

    def test_in_half_precision_from_decoded_pictures(self, tmp_path):
        path = tmp_path / "ssd.onnx"
        options = ("--config", "ssdlite_mobilevitv3-xxs", "--half", "--image-input", "--opset", "17")
        done = self.invoke(path, *options)
        assert done.exit_code == 0, done.output
        session = onnxruntime.InferenceSession(path)
        boxes, scores, labels = session.run(None, {"images": np.zeros((1, 64, 64, 3), np.uint8)})
        assert (boxes.shape[1:], scores.ndim, labels.dtype) == ((4,), 1, np.int64)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--config", "ssdlite_mobilevitv3-xxs", "--argmax"), "--raw is for detectors, --argmax for segmentors"),
            (("--config", "deeplabv3_mobilevitv3-0.5-d16", "--raw"), "--raw is for detectors, --argmax for segmentors"),
            (("mobilevitv3_xxs", "--raw"), "--raw and --argmax go with --config"),
        ],
    )
    def test_what_does_not_go_together(self, options, message, tmp_path):
        done = self.invoke(tmp_path / "file.onnx", *options)
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.replace("│", " ").split())
        assert not list(tmp_path.iterdir())

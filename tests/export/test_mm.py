"""Detectors and segmentors as exportable networks, and their ONNX files."""

import json

import pytest
import torch
from export_models import assert_plain, assert_traced_plain
from mm_models import SMALL, segmentor, ssd, theirs_of
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.configs import find_config, list_configs
from timm_mobilevit.export.mm import ExportableDetector, ExportableSegmentor, load_exportable


def preprocessed(model):
    """Images in [0, 1], RGB, as the configs say it; the models of the tests take what they get."""
    model.data_preprocessor._channel_conversion = True
    return model.eval()


def detector(**test_cfg):
    return preprocessed(ssd(SMALL, num_classes=3, **test_cfg))


def deeplab(**options):
    kwargs = {"output_stride": 16, "rates": (6, 12, 18), "auxiliary": False, **options}
    return preprocessed(segmentor(SMALL, "deeplabv3", 4, **kwargs))


def export(network, path, input_size, **options):
    """Write a file, which is compared with PyTorch, and open it."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from timm_mobilevit.export import export_onnx

    export_onnx(network, path, input_size=input_size, **options)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


class TestDetector:
    def test_boxes_and_scores_are_those_before_the_suppression(self):
        """Boxes are fractions of the image, whatever its size."""
        model = detector(score_thr=-1.0, nms_pre=-1)
        network = ExportableDetector(model)
        height, width = 64, 96
        images = torch.rand(2, 3, height, width)
        meta = {"img_shape": (height, width), "scale_factor": (1.0, 1.0)}
        with torch.inference_mode():
            boxes, scores = network(images)
            outputs = model.bbox_head(model.extract_feat(images))
            results = model.bbox_head.predict_by_feat(*outputs, batch_img_metas=[meta] * 2, with_nms=False)
        limit = torch.tensor([width, height, width, height])
        for i, expected in enumerate(results):
            actual = torch.minimum((boxes[i] * limit).clamp(min=0), limit)
            inside = (actual[:, 2:] > actual[:, :2]).all(dim=1)
            assert inside.sum() > 100
            # Every anchor whose box is in the image, once per class, best scores first.
            top, order = scores[i][inside].topk(int(inside.sum()), dim=0)
            torch.testing.assert_close(expected.scores, top.flatten())
            torch.testing.assert_close(expected.bboxes, actual[inside][order.flatten()], rtol=1e-4, atol=1e-3)

    def test_file(self, tmp_path):
        network = ExportableDetector(detector())
        assert_traced_plain(network, torch.rand(1, 3, 64, 64))
        session = export(network, tmp_path / "ssd.onnx", (3, 64, 64), dynamic_size=False)
        assert_plain(tmp_path / "ssd.onnx")
        assert [output.name for output in session.get_outputs()] == ["boxes", "scores"]
        assert json.loads(session.get_modelmeta().custom_metadata_map["iou_threshold"]) == 0.5

    @pytest.mark.long
    def test_file_for_any_size(self, tmp_path):
        network = ExportableDetector(detector())
        session = export(network, tmp_path / "ssd.onnx", (3, 288, 288))
        images = torch.rand(3, 3, 320, 256)
        with torch.inference_mode():
            expected = network(images)
        for actual, wanted in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(actual), wanted, rtol=0, atol=1e-4 * wanted.std().item())

    @pytest.mark.parametrize(
        ("nms", "threshold"),
        [
            ({"type": "nms", "iou_thr": 0.4}, 0.4),  # mmcv's older name
            ({"type": "soft_nms", "iou_threshold": 0.3}, 0.3),
            ({"type": "soft_nms", "min_score": 0.05}, None),  # mmcv has a default
        ],
    )
    def test_metadata_of_other_suppressions(self, nms, threshold):
        metadata = ExportableDetector(detector(nms=nms)).export_metadata
        assert metadata["iou_threshold"] == threshold
        assert metadata["nms"] == {
            key.replace("thr", "threshold") if key == "iou_thr" else key: nms[key] for key in nms
        }

    def test_what_cannot_be_exported(self):
        model = detector()
        model.bbox_head = torch.nn.Identity()
        with pytest.raises(
            ValueError,
            match="only a detector with SSDLiteHead can be exported, got a SingleStageDetector with Identity",
        ):
            ExportableDetector(model)
        model = detector()
        model.data_preprocessor._channel_conversion = False
        with pytest.raises(ValueError, match="feeds BGR images"):
            ExportableDetector(model)


class TestSegmentor:
    @pytest.mark.parametrize("later", [True, False])  # corners aligned or not
    def test_logits_are_those_of_the_segmentor(self, later):
        model = deeplab(later=later, resize="mmseg")
        network = ExportableSegmentor(model)
        images = torch.rand(2, 3, 64, 96)
        meta = {"ori_shape": (64, 96), "img_shape": (64, 96), "pad_shape": (64, 96)}
        with torch.inference_mode():
            actual = network(images)
            results = model.predict(images, [SegDataSample(metainfo=meta) for _ in range(2)])
        torch.testing.assert_close(actual, torch.stack([result.seg_logits.data for result in results]))

    @pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
    def test_file(self, head, tmp_path):
        rates = {"rates": (6, 12, 18)} if head == "deeplabv3" else {}
        network = ExportableSegmentor(
            preprocessed(segmentor(SMALL, head, 4, output_stride=16, auxiliary=False, **rates))
        )
        assert_traced_plain(network, torch.rand(1, 3, 64, 96))
        session = export(network, tmp_path / "segmentor.onnx", (3, 64, 96), dynamic_size=False)
        assert_plain(tmp_path / "segmentor.onnx")
        assert session.run(None, {"images": torch.rand(4, 3, 64, 96).numpy()})[0].shape == (4, 4, 64, 96)

    @pytest.mark.long
    @pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
    def test_file_for_any_size(self, head, tmp_path):
        rates = {"rates": (6, 12, 18)} if head == "deeplabv3" else {}
        model = segmentor(SMALL, head, 4, output_stride=16, auxiliary=False, **rates)
        export(ExportableSegmentor(preprocessed(model)), tmp_path / "segmentor.onnx", (3, 128, 160))

    def test_preprocessor_of_mmsegmentation_1_2(self):
        """It has the attribute under a name of its own."""
        model = deeplab()
        del model.data_preprocessor._channel_conversion
        model.data_preprocessor.channel_conversion = True
        assert ExportableSegmentor(model).export_metadata["mean"] == [0.0] * 3
        model.data_preprocessor.channel_conversion = False
        with pytest.raises(ValueError, match="feeds BGR images"):
            ExportableSegmentor(model)

    def test_what_cannot_be_exported(self):
        model = deeplab(test_cfg={"mode": "slide", "crop_size": (64, 64), "stride": (32, 32)})
        with pytest.raises(ValueError, match="mode 'whole' can be exported, got 'slide'"):
            ExportableSegmentor(model)


@pytest.mark.parametrize("path", list_configs(), ids=lambda path: path.stem)
def test_every_config_gives_an_exportable_network(path):
    network = load_exportable(str(path))
    channels, height, width = network.input_size
    assert (channels, height, width) in ((3, 320, 320), (3, 512, 512))
    metadata = network.export_metadata
    head = network.head
    assert len(metadata["labels"]) == head.num_classes
    assert metadata["mean"] == [0.0] * 3
    assert metadata["std"] == [1.0] * 3
    with torch.inference_mode():
        outputs = network(torch.rand(1, 3, 64, 64))
    if isinstance(network, ExportableDetector):
        boxes, scores = outputs
        assert scores.shape[1:] == (boxes.shape[1], head.num_classes)
    else:
        assert outputs.shape == (1, head.num_classes, 64, 64)


def test_both_kinds_of_checkpoint(tmp_path):
    """Official files, and those that mmdet's tools write."""
    config = find_config("ssdlite_mobilevitv3-xxs")
    cfg = Config.fromfile(config)
    cfg.model.backbone.pretrained = False
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    torch.save(theirs_of(model, "mobilevitv3_xxs"), tmp_path / "official.pt")
    first = load_exportable(str(config), str(tmp_path / "official.pt")).state_dict()
    saved = {key.removeprefix("detector."): tensor for key, tensor in first.items()}
    torch.save({"state_dict": saved, "meta": {"epoch": 3}}, tmp_path / "trained.pth")
    second = load_exportable(str(config), str(tmp_path / "trained.pth")).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())

    torch.save({"state_dict": {**saved, "backbone.more": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not hold the weights of ssdlite_mobilevitv3-xxs(?s:.*)backbone\.more"):
        load_exportable(str(config), str(tmp_path / "other.pth"))


def test_command(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    out = tmp_path / "ssdlite.onnx"
    args = ["export", "onnx", "--config", "ssdlite_mobilevitv3-xxs", "--random-weights", "--static", "--img-size", "64"]
    done = CliRunner().invoke(app, [*args, "--out", str(out)])
    assert done.exit_code == 0, done.output
    base = find_config("ssdlite_mobilevitv3-xxs").parents[1] / "_base_" / "default_runtime.py"
    done = CliRunner().invoke(
        app, ["export", "onnx", "--config", str(base), "--random-weights", "--out", str(tmp_path / "base.onnx")]
    )
    assert done.exit_code == 1
    assert "is no config of a detector or segmentor" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ssdlite.onnx"]


class TestClassNames:
    """Those of the config's test data, as the data set itself finds them; as many as the head has."""

    def load(self, tmp_path, dataset, num_classes=2):
        cfg = Config.fromfile(find_config("ssdlite_mobilevitv3-xxs"))
        cfg.model.bbox_head.num_classes = num_classes
        base = {"pipeline": cfg.test_dataloader.dataset.pipeline}
        cfg.test_dataloader.dataset = dataset(base)
        cfg.dump(tmp_path / "config.py")
        return load_exportable(str(tmp_path / "config.py")).export_metadata["labels"]

    def test_of_the_config(self, tmp_path):
        data = {"type": "CocoDataset", "metainfo": {"classes": ("cat", "dog")}}
        assert self.load(tmp_path, lambda base: base | data) == ["cat", "dog"]

    def test_of_a_class_file(self, tmp_path):
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
        data = {"type": "CocoDataset", "metainfo": {"classes": str(tmp_path / "classes.txt")}}
        assert self.load(tmp_path, lambda base: base | data) == ["cat", "dog"]

    def test_a_single_name(self, tmp_path):
        data = {"type": "CocoDataset", "metainfo": {"classes": "cat"}}
        assert self.load(tmp_path, lambda base: base | data, num_classes=1) == ["cat"]

    def test_their_number_must_be_the_heads(self, tmp_path):
        with pytest.raises(ValueError, match=r"the head has 2 classes, but .* names 80: person, bicycle"):
            self.load(tmp_path, lambda base: base | {"type": "CocoDataset"})


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        (  # CVNets v0.1
            "ssdlite_mobilevitv1-xxs",
            {"score_thr": 0.05, "nms_pre": -1, "iou_threshold": 0.5, "max_per_class": 200, "max_per_img": -1},
        ),
        (  # v0.2
            "ssdlite_mobilevitv2-0.5",
            {"score_thr": 0.01, "nms_pre": 400, "iou_threshold": 0.5, "max_per_class": -1, "max_per_img": 200},
        ),
    ],
)
def test_metadata_hold_all_settings_of_the_suppression(name, rules):
    metadata = load_exportable(name).export_metadata
    assert {key: metadata[key] for key in rules} == rules


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ssdlite_mobilevitv3-xxs", "DetDataPreprocessor"), ("deeplabv3_mobilevitv3-0.5-d16", "SegDataPreProcessor")],
)
def test_pixels_and_size_of_a_config_of_ones_own(name, kind, tmp_path):
    """ImageNet's mean and standard deviation, and images that are wider than high."""
    cfg = Config.fromfile(find_config(name))
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.model.data_preprocessor = {"type": kind, "mean": mean, "std": std, "bgr_to_rgb": True}
    pipeline = cfg.test_dataloader.dataset.pipeline
    for index, step in enumerate(pipeline):
        if step.type == "Resize":
            pipeline[index] = {"type": "Resize", "scale": (384, 256), "keep_ratio": False}
    cfg.dump(tmp_path / "own.py")
    network = load_exportable(str(tmp_path / "own.py"))
    assert network.export_metadata["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert network.export_metadata["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert network.input_size == (3, 256, 384)


@pytest.mark.long
@pytest.mark.parametrize("half", [False, True])
def test_forms_of_a_file(half, tmp_path):
    """Pixels in, and for a segmentor probabilities out; the export compares each with PyTorch."""
    pixels = torch.randint(256, (1, 64, 96, 3), dtype=torch.uint8).numpy()
    options = {"dynamic_batch": False, "dynamic_size": False, "half": half, "image_input": True}
    session = export(ExportableDetector(detector()), tmp_path / "ssd.onnx", (3, 64, 96), **options)
    boxes, scores = session.run(["boxes", "scores"], {"images": pixels})
    assert (boxes.dtype, scores.dtype) == ("float32", "float32")
    network = ExportableSegmentor(deeplab())
    session = export(network, tmp_path / "segmentor.onnx", (3, 64, 96), softmax=True, **options)
    (probabilities,) = session.run(["probabilities"], {"images": pixels})
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="softmax is for logits, but ExportableDetector gives boxes, scores"):
        export(ExportableDetector(detector()), tmp_path / "ssd.onnx", (3, 64, 96), softmax=True)

"""Segmentors and detectors with configs of users: necks, other heads, pipelines of any kind, one output channel."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mm_tiny import SQUARE, tiny_segmentor
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.models import FCNHead
from mmseg.structures import SegDataSample
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.export.mm import _exportable, load_exportable
from timm_mobilevit.mm.loading import load_model

NORM = {"type": "BN"}
# Changes of the model whose features pass a neck, or whose head gives no logits itself.
MODELS_OF_MMSEG = {
    "neck": {
        "neck": {"type": "FPN", "in_channels": [64, 80, 128], "out_channels": 16, "num_outs": 3},
        "decode_head": {
            "_delete_": True,
            "type": "FPNHead",
            "in_channels": [16, 16, 16],
            "in_index": [0, 1, 2],
            "feature_strides": [8, 16, 32],
            "channels": 8,
            "num_classes": 3,
            "norm_cfg": NORM,
        },
    },
    "K-Net": {
        "decode_head": {
            "_delete_": True,
            "type": "IterativeDecodeHead",
            "num_stages": 1,
            "kernel_generate_head": {
                "type": "FCNHead",
                "in_channels": 128,
                "in_index": 2,
                "channels": 16,
                "num_convs": 1,
                "concat_input": False,
                "num_classes": 3,
                "norm_cfg": NORM,
            },
            "kernel_update_head": [
                {
                    "type": "KernelUpdateHead",
                    "num_classes": 3,
                    "num_ffn_fcs": 2,
                    "num_heads": 4,
                    "num_mask_fcs": 1,
                    "feedforward_channels": 16,
                    "in_channels": 16,
                    "out_channels": 16,
                    "dropout": 0.0,
                    "conv_kernel_size": 1,
                    "ffn_act_cfg": {"type": "ReLU", "inplace": True},
                    "with_ffn": True,
                    "feat_transform_cfg": {"conv_cfg": {"type": "Conv2d"}, "act_cfg": None},
                    "kernel_updator_cfg": {
                        "type": "KernelUpdator",
                        "in_channels": 16,
                        "feat_channels": 16,
                        "out_channels": 16,
                        "act_cfg": {"type": "ReLU", "inplace": True},
                        "norm_cfg": {"type": "LN"},
                    },
                }
            ],
        }
    },
}


@pytest.mark.parametrize("name", ["neck", "K-Net"])
def test_logits_are_those_of_the_whole_model(name, tmp_path):
    config, weights = tiny_segmentor(tmp_path, model=MODELS_OF_MMSEG[name])
    network = load_exportable(str(config), str(weights))
    model, _ = load_model(str(config), weights)
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected = torch.stack([sample.seg_logits.data for sample in model.predict(images)])
        actual = network(images)
    assert float(expected.std()) > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_makes_logits_in_its_own_way(tmp_path):
    """MaskFormer's is one: its forward gives no logits of pixels."""

    @MODELS.register_module(force=True)
    class ReversingHead(FCNHead):
        def predict_by_feat(self, seg_logits, batch_img_metas):
            return super().predict_by_feat(seg_logits.flip(1), batch_img_metas)

    config, weights = tiny_segmentor(tmp_path, model={"decode_head": {"type": "ReversingHead"}})
    network = load_exportable(str(config), str(weights))
    model, _ = load_model(str(config), weights)
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        (sample,) = model.predict(images)
        torch.testing.assert_close(network(images)[0], sample.seg_logits.data, rtol=1e-4, atol=1e-5)


def test_file_of_a_model_with_a_neck(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    config, weights = tiny_segmentor(tmp_path, model=MODELS_OF_MMSEG["neck"])
    done = export(config, weights, tmp_path / "neck.onnx", "--static")
    assert done.exit_code == 0, done.output
    (logits,) = run(tmp_path / "neck.onnx", torch.rand(1, 3, 64, 64))
    assert logits.shape == (1, 3, 64, 64)


def export(config, weights, out, *options):
    command = ["export", "onnx", "--config", config, "--checkpoint", weights, "--out", out, *options]
    return CliRunner().invoke(app, [str(part) for part in command])


def run(path, images):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": np.asarray(images)}
    )


def facts(path):
    import onnx

    return {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}


class TestSize:
    """Of the images that a file takes: what the pipeline makes of a square image, or what is asked."""

    @pytest.mark.parametrize(
        ("steps", "size"),
        [
            (SQUARE, (64, 64)),
            ([{"type": "Resize", "scale": (96, 64), "keep_ratio": False}], (64, 96)),
            ([{"type": "Resize", "scale": (96, 64), "keep_ratio": True}], (64, 64)),
            ([{"type": "Resize", "scale": 128, "keep_ratio": False}], (128, 128)),
            ([{"type": "Resize", "scale_factor": 0.25, "keep_ratio": True}], (128, 128)),
            ([{"type": "mmdet.Resize", "scale": (96, 64), "keep_ratio": False}], (64, 96)),
            ([{"type": "ResizeShortestEdge", "scale": 96, "max_size": 200}], (96, 96)),
            ([{"type": "ResizeToMultiple", "size_divisor": 48}], (528, 528)),
            ([*SQUARE, {"type": "mmcv.Pad", "size_divisor": 48}], (96, 96)),
            ([], (512, 512)),
        ],
    )
    def test_of_any_pipeline(self, steps, size, tmp_path):
        config, weights = tiny_segmentor(tmp_path, steps=steps)
        assert load_exportable(str(config), str(weights)).input_size == (3, *size)

    @pytest.mark.parametrize("name", ["ConcatDataset", "RepeatDataset"])
    def test_of_wrapped_data(self, name, tmp_path):
        wrap = {
            "ConcatDataset": lambda data: {"type": name, "datasets": [data, data]},
            "RepeatDataset": lambda data: {"type": name, "times": 2, "dataset": data},
        }
        config, weights = tiny_segmentor(tmp_path, data=wrap[name])
        network = load_exportable(str(config), str(weights))
        assert network.input_size == (3, 64, 64)
        assert network.export_metadata["labels"] == ["ground", "road", "sky"]

    def test_that_is_asked_for_needs_no_pipeline(self, tmp_path):
        config, weights = tiny_segmentor(tmp_path, steps=[{"type": "NoSuchStep"}])
        with pytest.raises(
            ValueError, match=r"does not tell the size of the images .*NoSuchStep.* with --img-size HEIGHT,"
        ):
            load_exportable(str(config), str(weights))
        assert load_exportable(str(config), str(weights), (96, 160)).input_size == (3, 96, 160)

    @pytest.mark.parametrize(("text", "size"), [("96", [96, 96]), ("64,96", [64, 96]), ("64x96", [64, 96])])
    def test_by_the_command(self, text, size, tmp_path):
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
        config, weights = tiny_segmentor(tmp_path)
        done = export(config, weights, tmp_path / "sized.onnx", "--static", "--img-size", text)
        assert done.exit_code == 0, done.output
        assert facts(tmp_path / "sized.onnx")["input_size"] == [3, *size]
        assert run(tmp_path / "sized.onnx", torch.rand(1, 3, *size))[0].shape == (1, 3, *size)

    @pytest.mark.parametrize("text", ["0", "64,", "64,96,3", "big"])
    def test_what_is_no_size(self, text, tmp_path):
        config, weights = tiny_segmentor(tmp_path)
        done = export(config, weights, tmp_path / "sized.onnx", "--img-size", text)
        assert done.exit_code == 2
        assert "HEIGHT,WIDTH as in 480,640" in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(channels, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    config, weights = tiny_segmentor(
        tmp_path,
        loader={"color_type": {1: "grayscale", 4: "unchanged"}[channels]},
        model={
            "backbone": {"in_channels": channels},
            "data_preprocessor": {"mean": [0.0], "std": [255.0], "bgr_to_rgb": False},  # mmengine takes one or three
        },
    )
    done = export(config, weights, tmp_path / "file.onnx", "--static", "--argmax")
    assert done.exit_code == 0, done.output
    assert facts(tmp_path / "file.onnx")["std"] == [1.0] * channels
    assert run(tmp_path / "file.onnx", torch.rand(1, channels, 64, 64))[0].shape == (1, 64, 64)


BINARY = {
    "decode_head": {
        "out_channels": 1,
        "threshold": 0.6,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": True},
    }
}


THRESHOLD_LOGIT = 0.405  # its sigmoid is 0.6


class TestBinary:
    """``num_classes=2, out_channels=1``: the sigmoid, and the head's threshold."""

    @pytest.fixture
    def files(self, tmp_path):
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
        files = tiny_segmentor(tmp_path, classes=("ground", "road"), model=BINARY)
        state_dict = torch.load(files[1])["state_dict"]
        with torch.inference_mode():
            logits = load_exportable(str(files[0]), str(files[1]))(torch.rand(1, 3, 64, 64))
        state_dict["decode_head.conv_seg.bias"] += THRESHOLD_LOGIT - logits.median()  # half of the pixels are above
        torch.save({"state_dict": state_dict}, files[1])
        return files

    @pytest.fixture
    def found(self, files):
        """Images, and probabilities and classes that the model gives for them."""
        model, _ = load_model(str(files[0]), files[1])
        images = torch.rand(1, 3, 64, 64)
        data = [SegDataSample(metainfo=dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), (64, 64)))]
        with torch.inference_mode():
            (sample,) = model.predict(images, data)
        return images, sample.seg_logits.data, sample.pred_sem_seg.data

    def test_argmax(self, files, found, tmp_path):
        done = export(*files, tmp_path / "file.onnx", "--static", "--argmax")
        assert done.exit_code == 0, done.output
        images, _, classes = found
        (actual,) = run(tmp_path / "file.onnx", images)
        assert actual.dtype == np.int64
        assert 0.2 < actual.mean() < 0.8
        assert (actual == classes.numpy()).mean() > 0.999
        assert facts(tmp_path / "file.onnx")["threshold"] == 0.6
        assert facts(tmp_path / "file.onnx")["labels"] == ["ground", "road"]

    def test_probabilities(self, files, found, tmp_path):
        done = export(*files, tmp_path / "file.onnx", "--static", "--softmax")
        assert done.exit_code == 0, done.output
        images, probabilities, _ = found
        (actual,) = run(tmp_path / "file.onnx", images)
        assert actual.shape == (1, 1, 64, 64)
        np.testing.assert_allclose(actual[0], probabilities.numpy(), atol=1e-4)

    def test_wrong_classes_are_not_kept(self, files, tmp_path, monkeypatch):
        from timm_mobilevit.export import tails

        translate = tails.translate
        monkeypatch.setattr(tails, "translate", lambda tail, *args: translate(tails.Classes(0.3), *args))
        done = export(*files, tmp_path / "file.onnx", "--static", "--argmax")
        assert done.exit_code == 1
        assert "the classes are not those of the logits" in done.stderr
        assert not (tmp_path / "file.onnx").exists()

    def test_both_classes_have_names(self, tmp_path):
        config, weights = tiny_segmentor(tmp_path, classes=("road",), model=BINARY)
        with pytest.raises(
            ValueError, match="one output channel tells two classes apart, but the head has num_classes=1"
        ):
            load_exportable(str(config), str(weights))


class TestWhatCannotBeExported:
    """By name, with what can."""

    def test_cascades(self, tmp_path):
        first = {
            "type": "FCNHead",
            "in_channels": 128,
            "in_index": 2,
            "channels": 16,
            "num_classes": 3,
            "norm_cfg": NORM,
        }
        second = {"type": "OCRHead", "in_channels": 128, "in_index": 2, "channels": 16, "ocr_channels": 8}
        model = {"type": "CascadeEncoderDecoder", "num_stages": 2, "decode_head": [first, {**second, "num_classes": 3}]}
        config, _ = tiny_segmentor(tmp_path)
        cfg = Config.fromfile(config)
        cfg.model.update(model)
        cfg.dump(config)
        with pytest.raises(
            ValueError, match=r"a CascadeEncoderDecoder cannot be .* several decode heads \(FCNHead, OCRHead\)"
        ):
            load_exportable(str(config))

    @pytest.mark.detection
    def test_detectors_of_two_stages(self, tmp_path):
        import mmdet

        init_default_scope("mmdet")
        path = Path(mmdet.__file__).parent / ".mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
        model = MODELS.build(Config.fromfile(path).model)
        with pytest.raises(
            ValueError, match="a FasterRCNN cannot be exported; expected a SingleStageDetector with SSDLite"
        ):
            _exportable(model)

"""``timm-mobilevit predict --config``: pictures and JSON of detectors and segmentors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

pytest.importorskip("mmdet")

from mm_models import theirs_of
from mm_tiny import tiny_segmentor
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmseg.apis import inference_model, init_model
from mmseg.datasets import PascalVOCDataset
from pycocotools import mask as rle

from timm_mobilevit.cli import app
from timm_mobilevit.cli.mm_predict import _label, _picture_names
from timm_mobilevit.configs import find_config
from timm_mobilevit.mm.loading import load_model

NAMES = {"detector": "ssdlite_mobilevitv3-xxs", "segmentor": "deeplabv3_mobilevitv3-0.5-d16"}
# Scores of random weights are below the threshold of the config, and thousands of boxes take long to draw.
CHANGES = {"detector": "test_cfg=dict(score_thr=0.0, nms_pre=9, max_per_img=12)", "segmentor": ""}
ARCHITECTURES = {"detector": "mobilevitv3_xxs", "segmentor": "mobilevitv3_0_5"}
CLASSES = {"detector": CocoDataset.METAINFO["classes"], "segmentor": PascalVOCDataset.METAINFO["classes"]}
OFF = {"model.backbone.pretrained": False}


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for kind, name in NAMES.items():
        text = f"_base_ = [{str(find_config(name).resolve())!r}]\nmodel = dict({CHANGES[kind]})\n"
        (folder / f"{kind}.py").write_text(text)
    return {kind: folder / f"{kind}.py" for kind in NAMES}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photographs of different sizes, one in a folder of the folder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    china, flower = (Image.fromarray(array) for array in load_sample_images().images)
    china.resize((160, 100)).save(folder / "china.jpg", quality=95)
    flower.resize((90, 120)).save(folder / "deep" / "flower.png")
    return folder


@pytest.fixture(scope="module", params=list(NAMES))
def files(request, configs, tmp_path_factory):
    """What kind it is, and checkpoints with the same weights: an official one, a converted one, one of a training."""
    kind = request.param
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model, _ = load_model(configs[kind])
    torch.save(theirs_of(model, ARCHITECTURES[kind]), folder / "official.pt")
    done = run("convert", folder / "official.pt", "--config", NAMES[kind], "--out", folder / "converted.pth")
    assert done.exit_code == 0, done.output
    state_dict = torch.load(folder / "converted.pth")["state_dict"]
    meta = {"epoch": 3, "iter": 12, "dataset_meta": {"classes": ["unused"]}}
    torch.save({"meta": meta, "state_dict": state_dict, "param_schedulers": [{}]}, folder / "trained.pth")
    return kind, folder


def predict(config, checkpoint, photos, out, *args):
    done = run("predict", photos, "--config", config, "--checkpoint", checkpoint, "--out", out, *args)
    assert done.exit_code == 0, done.output
    return done, json.loads((out / "predictions.json").read_text())["predictions"]


def test_three_kinds_of_files_and_what_the_frameworks_find(files, configs, photos, tmp_path):
    kind, folder = files
    found = {}
    for name in ("official.pt", "converted.pth", "trained.pth"):
        done, found[name] = predict(configs[kind], folder / name, photos, tmp_path / name, "--min-score", 0.0)
        assert done.stdout.splitlines()[0] == f"{photos / 'china.jpg'} → china.png"
    assert found["official.pt"] == found["converted.pth"] == found["trained.pth"]
    assert [entry["picture"] for entry in found["official.pt"]] == ["china.png", "deep/flower.png"]

    path = str(configs[kind])
    checkpoint = str(folder / "converted.pth")
    if kind == "detector":
        theirs = init_detector(path, checkpoint, device="cpu", cfg_options=OFF, palette="random")
    else:
        theirs = init_model(path, checkpoint, device="cpu", cfg_options=OFF)
    for entry in found["official.pt"]:
        original = Image.open(entry["image"])
        picture = Image.open(tmp_path / "official.pt" / entry["picture"]).convert("RGB")
        assert picture.size == original.size == (entry["width"], entry["height"])
        assert np.abs(np.asarray(picture, float) - np.asarray(original.convert("RGB"), float)).mean() > 1  # drawn on
        if kind == "detector":
            wanted = inference_detector(theirs, entry["image"]).pred_instances
            assert [d["score"] for d in entry["detections"]] == pytest.approx(wanted.scores.tolist(), rel=1e-4)
            assert [d["index"] for d in entry["detections"]] == wanted.labels.tolist()
            boxes = torch.tensor([d["box"] for d in entry["detections"]])
            torch.testing.assert_close(boxes, wanted.bboxes, rtol=1e-4, atol=1e-2)
        else:
            wanted = inference_model(theirs, entry["image"]).pred_sem_seg.data[0].numpy()
            assert sum(segment["pixels"] for segment in entry["segments"]) == wanted.size
            for segment in entry["segments"]:
                mask = rle.decode(segment["mask"]).astype(bool)
                assert (mask == (wanted == segment["index"])).all()
        names = {found["label"] for found in entry.get("detections") or entry["segments"]}
        assert names <= set(CLASSES[kind])


def test_smallest_score_holds_for_json_and_picture(configs, photos, tmp_path):
    model, _ = load_model(configs["detector"])
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    config = configs["detector"]
    photo = photos / "china.jpg"
    _, (many,) = predict(config, tmp_path / "model.pth", photo, tmp_path / "many", "--min-score", 0.0)
    middle = sorted(d["score"] for d in many["detections"])[len(many["detections"]) // 2]
    _, (few,) = predict(config, tmp_path / "model.pth", photo, tmp_path / "few", "--min-score", middle)
    assert few["detections"] == [d for d in many["detections"] if d["score"] >= middle]
    _, (none,) = predict(config, tmp_path / "model.pth", photo, tmp_path / "none", "--min-score", 1.0)
    assert none["detections"] == []
    pictures = [(tmp_path / name / "china.png").read_bytes() for name in ("many", "few", "none")]
    assert len(set(pictures)) == 3


def test_images_that_cannot_be_read_are_reported(photos, tmp_path):
    model, _ = load_model(NAMES["detector"])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "cut.png").write_bytes((photos / "deep" / "flower.png").read_bytes()[:2000])
    images = (tmp_path / "cut.png", photos / "china.jpg", tmp_path / "missing.png")
    options = ("--config", NAMES["detector"], "--checkpoint", tmp_path / "model.pth", "--out", tmp_path / "out")
    done = run("predict", *images, *options, "--json")
    assert done.exit_code == 1
    entries = json.loads(done.stdout)["predictions"]
    assert entries == json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert ["error" in entry for entry in entries] == [True, False, True]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["china.png", "predictions.json"]
    done = run("predict", *images, *options)
    assert done.exit_code == 1
    assert "out is not empty" in done.stderr
    done = run("predict", *images, *options, "--force")
    assert [line.split(": ")[1].rpartition("/")[2] for line in done.stderr.splitlines()] == ["cut.png", "missing.png"]


def test_images_are_read_as_by_all_commands(configs, photos, tmp_path):
    """Turned as EXIF says, which mmcv's own reader does not do with WebP, and 16 bits of grey scaled to eight."""
    model, _ = load_model(configs["detector"])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    grey = np.asarray(Image.open(photos / "china.jpg").convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    (tmp_path / "images").mkdir()
    Image.fromarray(grey).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.rot90(grey)).save(tmp_path / "images" / "b.webp", lossless=True, exif=exif)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "images" / "c.png")
    options = ("--config", configs["detector"], "--checkpoint", tmp_path / "model.pth", "--out", tmp_path / "out")
    done = run("predict", *sorted((tmp_path / "images").iterdir()), *options, "--min-score", 0, "--json")
    assert done.exit_code == 0, done.output
    plain, turned, deep = json.loads(done.stdout)["predictions"]
    assert (turned["width"], turned["height"]) == (160, 100)
    assert turned["detections"] == deep["detections"] == plain["detections"] != []
    pictures = [np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in "abc"]
    np.testing.assert_array_equal(pictures[1], pictures[0])
    np.testing.assert_array_equal(pictures[2], pictures[0])


def test_bad_calls(photos, tmp_path):
    config = ("--config", NAMES["detector"])
    out = ("--out", tmp_path / "out")
    for arguments, code, message in (
        ((*config, *out), 2, "needs weights in --checkpoint"),
        ((*config, "--checkpoint", "model.pth"), 2, "a folder to write to"),
        ((*config, *out, "--checkpoint", "model.pth", "--topk", 3), 2, "--topk is for classifiers"),
        ((*config, *out, "--checkpoint", "model.pth", "--model", "mobilevitv1_s"), 2, "--model is for classifiers"),
        (("--model", "mobilevitv1_s", *out), 2, "--out goes with --config"),
        (("--model", "mobilevitv1_s", "--min-score", 0.5), 2, "--min-score goes with --config"),
        ((*config, *out, "--checkpoint", tmp_path / "missing.pth"), 1, "no checkpoint file"),
        (("--config", "resnet", *out, "--checkpoint", "model.pth"), 1, "no config resnet"),
    ):
        done = run("predict", photos, *arguments)
        assert done.exit_code == code, done.output
        assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_every_image_has_a_picture_of_its_own():
    folder = Path("tests")  # any folder that is there
    images = [folder / "a" / "1.jpg", folder / "b" / "1.jpg", folder / "b" / "1.png", Path("x/1.jpg"), Path("y/1.png")]
    assert _picture_names([folder, *images[3:]], images) == ["a/1.png", "b/1.png", "b/1_2.png", "1.png", "1_2.png"]


@pytest.mark.parametrize("names", [("ground",), ("ground", "road", "sky", "sea")])
def test_names_of_other_classes_are_refused_before_any_picture(names, photos, tmp_path):
    config, weights = tiny_segmentor(tmp_path, data=lambda data: {**data, "metainfo": {"classes": names}})
    done = run("predict", photos, "--config", config, "--checkpoint", weights, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert f"the model tells 3 classes apart, but the data set that {config} tests on names {len(names)}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_name_where_the_head_does_not_say_how_many_it_has():
    with pytest.raises(ValueError, match=r"the model finds class 1, but the data set .* names 1: road; name all"):
        _label(("road",), 1)


def test_a_detector_of_other_classes_than_its_data_set(photos, tmp_path):
    """Named in the training's data alone: the test data set still has COCO's 80 names."""
    text = (
        f"_base_ = [{str(find_config(NAMES['detector']).resolve())!r}]\nmodel = dict(bbox_head=dict(num_classes=3))\n"
    )
    (tmp_path / "config.py").write_text(text)
    model, _ = load_model(tmp_path / "config.py")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    arguments = ("--config", tmp_path / "config.py", "--checkpoint", tmp_path / "model.pth", "--out", tmp_path / "out")
    done = run("predict", photos, *arguments)
    assert done.exit_code == 1
    assert "tells 3 classes apart, but" in done.stderr
    assert "names 80: person" in done.stderr


class TestConfigsOfUsers:
    """Binary segmentors, wrapped data, types as classes, images of other channels."""

    def predicted(self, folder, photos, **options):
        config, weights = tiny_segmentor(folder, **options)
        return predict(config, weights, photos / "china.jpg", folder / "out")[1][0]

    def test_binary(self, photos, tmp_path):
        """One output channel: pixels above the threshold are of class 1."""
        sigmoid = {"type": "CrossEntropyLoss", "use_sigmoid": True}
        shares = []
        for threshold in (0.0, 0.999999):
            head = {"out_channels": 1, "threshold": threshold, "loss_decode": sigmoid}
            folder = tmp_path / str(threshold)
            folder.mkdir()
            names = ("ground", "road")
            entry = self.predicted(folder, photos, classes=names, model={"decode_head": head})
            (segment,) = entry["segments"]
            shares.append((segment["label"], segment["index"], segment["pixels"]))
        assert shares == [("road", 1, 160 * 100), ("ground", 0, 160 * 100)]

    def test_a_class_without_a_name(self, photos, tmp_path):
        sigmoid = {"type": "CrossEntropyLoss", "use_sigmoid": True}
        head = {"out_channels": 1, "threshold": 0.0, "loss_decode": sigmoid}
        config, weights = tiny_segmentor(tmp_path, classes=("road",), model={"decode_head": head})
        options = ("--config", config, "--checkpoint", weights, "--out", tmp_path / "out")
        done = run("predict", photos / "china.jpg", *options)
        assert done.exit_code == 1
        assert f"the model tells 2 classes apart, but the data set that {config} tests on names 1: road" in done.stderr

    @pytest.mark.parametrize("name", ["ConcatDataset", "RepeatDataset"])
    def test_wrapped_data(self, name, photos, tmp_path):
        wrap = {
            "ConcatDataset": lambda data: {"type": name, "datasets": [data, data]},
            "RepeatDataset": lambda data: {"type": name, "times": 2, "dataset": data},
        }
        found = []
        for kind, data in (("plain", None), (name, wrap[name])):
            (tmp_path / kind).mkdir()
            entry = self.predicted(tmp_path / kind, photos, data=data)
            found.append(entry["segments"])
        assert found[0] == found[1]
        assert sum(segment["pixels"] for segment in found[0]) == 160 * 100

    def test_grey_images(self, photos, tmp_path):
        """The loader of the config reads them."""
        entry = self.predicted(
            tmp_path,
            photos,
            loader={"color_type": "grayscale"},
            model={
                "backbone": {"in_channels": 1},
                "data_preprocessor": {"mean": [0.0], "std": [255.0], "bgr_to_rgb": False},
            },
        )
        assert sum(segment["pixels"] for segment in entry["segments"]) == 160 * 100

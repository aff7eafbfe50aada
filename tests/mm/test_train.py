"""The digit configs with the tools of MMDetection and MMSegmentation: train, be killed, resume, test, two processes."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from mm_apart import finish, start
from mm_models import by_framework, randomise_model
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer
from mmseg.structures import SegDataSample
from PIL import Image
from typer.testing import CliRunner

from benchmarks.mm_data import write_scenes
from timm_mobilevit.cli import app
from timm_mobilevit.mm import TimmMobileViT
from timm_mobilevit.mm.loading import load_model

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "benchmarks" / "mm_digits").glob("*.py"))
SIZE = 96
SCENES = 16
BATCH = 4
EPOCHS = 3
STEPS = SCENES // BATCH  # per epoch
KILLED_AT = STEPS + 1  # in the middle of the second epoch


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, train=SCENES, val=4, size=SIZE, digit_sides=(0.4, 0.7))


def small_config(source, scenes, folder, **witness):
    """The config for the small scenes, with everything it writes below ``folder``."""
    config = Config.fromfile(source)
    config.work_dir = str(folder / "work")
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = config[name]
        loader.batch_size = BATCH
        loader.dataset.data_root = str(scenes)
        for step in loader.dataset.pipeline:
            step.update({key: (SIZE, SIZE) for key in ("scale", "crop_size") if key in step})
    for name in ("val_evaluator", "test_evaluator"):
        if "ann_file" in config[name]:
            config[name].ann_file = str(scenes / "annotations/val.json")
    config.model.backbone.pretrained = False
    if "size" in config.model.data_preprocessor:
        config.model.data_preprocessor.size = (SIZE, SIZE)
    if "decode_head" in config.model:
        config.model.decode_head.dropout_ratio = 0  # mmengine does not store the state of random generators
    config.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    config.param_scheduler[-1].end = EPOCHS
    config.custom_imports.imports.append("mm_witness")  # some packages install a `tests` of their own
    config.custom_hooks = [{"type": "Witness", "file": str(folder / "losses.txt"), **witness}]
    return config


def save(config, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    config.dump(file)
    return file


def tool(script, config, *arguments, code=0):
    log = config.parent / "log.txt"
    process = start(Config.fromfile(config).default_scope, script, config, *arguments, log=log)
    assert finish(process) == code, log.read_text()[-3000:]


def losses(folder):
    rows = (line.split() for line in (folder / "losses.txt").read_text().splitlines())
    return [(int(step), float(loss)) for step, loss in rows]


@pytest.fixture(scope="module", params=by_framework(CONFIGS))
def run(request, scenes, tmp_path_factory):
    """Folder of an unbroken run, with ``config.py`` beside the work folder."""
    folder = tmp_path_factory.mktemp("run")
    config = save(small_config(request.param, scenes, folder), folder / "config.py")
    tool("train.py", config)
    return folder


def relabel(scenes, samples):
    """Replace the labels of the scenes to validate on by what a model found."""
    if "pred_sem_seg" in samples[0]:
        for sample in samples:
            classes = sample.pred_sem_seg.data[0].numpy().astype(np.uint8)
            assert len(np.unique(classes)) > 3
            Image.fromarray(classes).save(scenes / "ann_dir" / "val" / f"{Path(sample.img_path).stem}.png")
        return
    file = scenes / "annotations" / "val.json"
    content = json.loads(file.read_text())
    least = torch.cat([sample.pred_instances.scores for sample in samples]).topk(40).values[-1]
    content["annotations"] = []
    for sample in samples:
        best = sample.pred_instances[sample.pred_instances.scores >= least]
        corners, labels = best.bboxes.double(), best.labels.tolist()
        sides = corners[:, 2:] - corners[:, :2]
        for box, side, label in zip(corners.tolist(), sides.tolist(), labels, strict=True):
            content["annotations"].append(
                {
                    "id": 1 + len(content["annotations"]),
                    "image_id": sample.img_id,
                    "category_id": 1 + label,
                    "bbox": box[:2] + side,
                    "area": side[0] * side[1],
                    "iscrowd": 0,
                }
            )
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module", params=by_framework(CONFIGS))
def labelled(request, tmp_path_factory):
    """Folder of a config and random weights, whose scenes to validate on are labelled by what the model finds.

    Whatever is found else is an error. A network that has just begun to learn hardly looks at the image.
    """
    folder = tmp_path_factory.mktemp("labelled")
    scenes = write_scenes(folder / "scenes", train=1, val=4, size=SIZE)
    config = small_config(request.param, scenes, folder)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = randomise_model(MODELS.build(config.model))
    torch.save({"state_dict": model.state_dict()}, folder / "model.pth")
    save(config, folder / "config.py")
    with torch.inference_mode():
        batches = [model.test_step(batch) for batch in Runner.build_dataloader(config.test_dataloader)]
    relabel(scenes, [sample for batch in batches for sample in batch])
    return folder


def checkpoint(folder):
    return folder / "work" / f"epoch_{EPOCHS}.pth"


def last_metrics(folder):
    """What the last evaluation below ``folder`` gave, without times."""
    (file,) = folder.glob("*/2*.json")
    return {key: value for key, value in json.loads(file.read_text()).items() if not key.endswith("time")}


def last_validation(folder):
    """What validation in training gave last: its metrics, the step, and times."""
    *_, file = sorted((folder / "work").glob("*/vis_data/scalars.json"))  # one per start, named by its time
    return json.loads(file.read_text().splitlines()[-1])


@pytest.mark.detection
def test_digits_have_anchors(tmp_path):
    """The detector learns a digit from the anchors that overlap it by half: few, for a small image has few cells."""
    from mmdet.structures.bbox import bbox_overlaps

    config = Config.fromfile(ROOT / "benchmarks/mm_digits/ssdlite_mobilevitv3-xxs_digits.py")
    config.model.backbone.pretrained = False
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).eval()
    with torch.inference_mode():
        maps = model.extract_feat(torch.zeros(1, 3, *config.size))
    anchors = torch.cat(model.bbox_head.prior_generator.grid_priors([level.shape[-2:] for level in maps], device="cpu"))
    scenes = write_scenes(tmp_path / "scenes", train=100, val=1, size=config.size[0])
    boxes = torch.tensor(
        [box["bbox"] for box in json.loads((scenes / "annotations/train.json").read_text())["annotations"]]
    )
    boxes[:, 2:] += boxes[:, :2]  # (x, y, w, h) to corners
    matches = (bbox_overlaps(boxes.float(), anchors) >= config.model.train_cfg.assigner.pos_iou_thr).sum(dim=1)
    assert (matches == 0).float().mean() < 0.02
    assert matches.float().mean() > 10


def test_loss_falls_and_checkpoint_is_saved(run):
    steps, values = zip(*losses(run), strict=True)
    assert list(steps) == list(range(EPOCHS * STEPS))
    assert np.mean(values[-STEPS:]) < 0.9 * np.mean(values[:STEPS])
    assert checkpoint(run).is_file()
    assert (run / "work" / "last_checkpoint").read_text() == str(checkpoint(run))


@pytest.mark.parametrize(
    "run", [*by_framework(CONFIGS[:1], "long"), *by_framework(CONFIGS[1:])], indirect=True, scope="module"
)
def test_killed_run_resumes_on_the_same_curve(run, scenes, request, tmp_path):
    """What is resumed, the average of the weights and the schedule, is the same for a segmentor."""
    source = request.node.callspec.params["run"]
    config = save(small_config(source, scenes, tmp_path, kill_at=KILLED_AT), tmp_path / "killed" / "config.py")
    tool("train.py", config, code=-9)
    assert [step for step, _ in losses(tmp_path)] == list(range(KILLED_AT))
    (tmp_path / "losses.txt").unlink()

    tool("train.py", save(small_config(source, scenes, tmp_path), tmp_path / "config.py"), "--resume")
    unbroken = losses(run)[STEPS:]
    resumed = losses(tmp_path)
    assert [step for step, _ in resumed] == [step for step, _ in unbroken]
    np.testing.assert_allclose([loss for _, loss in resumed], [loss for _, loss in unbroken], rtol=1e-4)
    expected, validated = (
        {key: value for key, value in last_validation(folder).items() if not key.endswith("time")}
        for folder in (run, tmp_path)
    )
    assert len(expected) > 1  # more than the step
    assert validated == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_testing_gives_what_the_model_finds(labelled, tmp_path):
    tool("test.py", labelled / "config.py", labelled / "model.pth", "--work-dir", tmp_path)
    metrics = last_metrics(tmp_path)
    if "mIoU" in metrics:
        assert metrics["mIoU"] == pytest.approx(100, abs=0.1)
    else:
        assert [metrics["coco/bbox_mAP"], metrics["coco/bbox_mAP_75"]] == pytest.approx([1, 1], abs=0.02)


@pytest.mark.long  # quicker tests below have the numbers of such a file, and a command that reads the checkpoint
def test_training_is_exported(run, tmp_path):
    """By the command, from the file as the runner wrote it; what the file finds is what the model finds."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    out = tmp_path / "model.onnx"
    segments = "mmseg" in (run / "config.py").read_text()
    arguments = ["export", "onnx", "--config", run / "config.py", "--checkpoint", checkpoint(run), "--out", out]
    arguments.append("--fixed-size")
    done = CliRunner().invoke(app, [str(argument) for argument in [*arguments, *(["--argmax"] if segments else [])]])
    assert done.exit_code == 0, done.output
    model, _ = load_model(str(run / "config.py"), checkpoint(run))
    images = torch.rand(1, 3, SIZE, SIZE)
    outputs = onnxruntime.InferenceSession(out).run(None, {"images": images.numpy()})
    meta = dict.fromkeys(("img_shape", "batch_input_shape", "ori_shape", "pad_shape"), (SIZE, SIZE))
    if segments:
        kind = SegDataSample
    else:
        from mmdet.structures import DetDataSample

        kind = DetDataSample
    with torch.inference_mode():
        (sample,) = model.predict(images, [kind(metainfo={**meta, "scale_factor": (1.0, 1.0)})])
    if segments:
        assert (outputs[0] == sample.pred_sem_seg.data.numpy()).mean() > 0.999
    else:
        found = sample.pred_instances
        assert len(found) > 5
        for actual, expected in zip(outputs, (found.bboxes, found.scores, found.labels), strict=True):
            np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-4 * max(float(expected.max()), 1))


def test_file_is_as_accurate_as_the_model(labelled, tmp_path):
    from benchmarks import exports

    subject = exports.dense(labelled / "config.py", labelled / "model.pth")
    to = "openvino" if subject.metric == "mIoU" else "onnx"
    pytest.importorskip({"onnx": "onnxruntime"}.get(to, to), reason=f"needs {to}")
    keys = list(exports.wanted(subject, ["torch", to], ["plain", "optimized, bf16", "fp32"]))
    rows = {(row["format"], row["form"]): row for row in exports.measure(subject, keys, tmp_path, rounds=0, seconds=0)}
    assert {row["result"] for row in rows.values()} == {"yes"}
    accuracy = {key: float(row["accuracy"]) for key, row in rows.items()}
    assert accuracy.pop(("torch", "optimized, bf16")) > 70
    assert accuracy == {("torch", "plain"): pytest.approx(100, abs=0.01), (to, "fp32"): pytest.approx(100, abs=2)}


@pytest.mark.parametrize("converted", [False, True], ids=["trained", "converted"])
def test_inferencers_draw_without_network(run, scenes, converted, tmp_path, monkeypatch):
    """The config asks for published weights, which are not fetched: the checkpoint has all."""
    config = Config.fromfile(run / "config.py")
    config.model.backbone.pretrained = True
    config.dump(tmp_path / "config.py")
    weights = checkpoint(run)
    if converted:
        weights = tmp_path / "converted.pth"
        arguments = ["convert", checkpoint(run), "--config", tmp_path / "config.py", "--out", weights]
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output

    def no_network(*_, **__):
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr(TimmMobileViT, "_read_pretrained", no_network)
    image = sorted((scenes / "img_dir" / "val").iterdir())[0]
    options = {"model": str(tmp_path / "config.py"), "weights": str(weights), "device": "cpu"}
    if config.default_scope == "mmseg":
        inferencer = MMSegInferencer(**options)
        inferencer(str(image), out_dir=str(tmp_path / "found"), show=False)
    else:
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(**options, show_progress=False)
        inferencer(str(image), out_dir=str(tmp_path / "found"), pred_score_thr=0.0, print_result=False)
    assert tuple(inferencer.model.dataset_meta["classes"])[-1] == "9"
    (picture,) = (tmp_path / "found" / "vis").iterdir()
    plain = np.asarray(Image.open(image).convert("RGB")).astype(float)
    assert np.abs(np.asarray(Image.open(picture).convert("RGB")).astype(float) - plain).mean() > 3  # of 255


@pytest.mark.parametrize("source", [*by_framework(CONFIGS[:1]), *by_framework(CONFIGS[1:], "long")])
def test_two_processes_equal_one_with_the_double_batch(source, tmp_path):
    """Every step sees the same four scenes: a process takes every second one.

    That the mean of two losses is the loss of all asks for three things. Batch norms are frozen: on the CPU nothing
    synchronises them. Nothing is random but the weights, which a seed fixes. And all scenes get the same boxes: the
    detector divides by the number of positive anchors, of which both processes have the same number then.
    """
    scenes = write_scenes(tmp_path / "scenes", train=2 * BATCH, val=1, size=SIZE, digit_sides=(0.4, 0.7))
    file = scenes / "annotations/train.json"
    content = json.loads(file.read_text())
    boxes = [box for box in content["annotations"] if box["image_id"] == 0]
    content["annotations"] = [
        {**box, "image_id": image["id"], "id": 1 + len(boxes) * image["id"] + i}
        for image in content["images"]
        for i, box in enumerate(boxes)
    ]
    file.write_text(json.dumps(content))

    def config_of(folder, batch):
        config = small_config(source, scenes, folder, freeze_norms=True)
        config.train_dataloader.update(batch_size=batch, num_workers=0)
        config.train_dataloader.sampler.shuffle = False
        config.train_dataloader.dataset.pipeline = config.val_dataloader.dataset.pipeline
        config.train_cfg.update(max_epochs=1, val_interval=2)
        return save(config, folder / "config.py")

    tool("train.py", config_of(tmp_path / "single", BATCH))
    config = config_of(tmp_path / "double", BATCH // 2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = (Config.fromfile(config).default_scope, "train.py", config, "--launcher", "pytorch")
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    ranks = [  # with the variables that torchrun sets
        start(*command, log=log, **address, WORLD_SIZE="2", RANK=log.stem, LOCAL_RANK=log.stem) for log in logs
    ]
    for process in ranks:
        finish(process)
    # Judged by its losses: gloo of some versions of PyTorch now and then aborts a process that has done its work.
    said = logs[0].read_text()[-3000:]
    assert (tmp_path / "double" / "losses.txt").exists(), said
    (steps, single), (same, double) = (zip(*losses(tmp_path / name), strict=True) for name in ("single", "double"))
    assert list(steps) == list(same) == [0, 1], said
    assert single[0] != pytest.approx(single[1], rel=1e-3)
    assert double[0] == pytest.approx(single[0], rel=1e-5)
    assert double[1] == pytest.approx(single[1], rel=1e-3)  # after a step with the mean of both gradients

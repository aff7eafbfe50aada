"""Every config of MMDetection and MMSegmentation: parses, builds, trains and predicts as its name and header say."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

try:
    import timm_mobilevit.mm  # noqa: F401  registers what the configs name
except ImportError as missing:  # its message names the extra
    pytest.skip(str(missing), allow_module_level=True)

from mm_models import by_framework
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from timm_mobilevit.mm import MobileViTPSPHead
from timm_mobilevit.variants import get_variant

ROOT = Path(__file__).parents[2]
LEAVES = sorted((ROOT / "mm_configs").glob("mm*/[!_]*/*.py"))
METAFILES = sorted((ROOT / "mm_configs").glob("mm*/[!_]*/metafile.yml"))
ENTRIES = {
    entry["Name"]: entry for file in METAFILES for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["Models"]
}
COCO_CLASSES = [
    name
    for name in SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"]
    if name not in ("__background__", "N/A")
]
NAME = re.compile(
    r"(ssdlite|deeplabv3|pspnet)_(?P<net>mobilevitv[123]-[a-z0-9.]+)(-rangeaugment)?(-d(?P<stride>8|16))?"
    r"_(?P<gpus>\d)xb(?P<batch>\d+)-(?P<epochs>\d+)e_(coco|ade20k|voc12aug)-(?P<size>\d+)x(?P=size)"
)


def _bases(leaf):
    return tuple(re.findall(r"_base_/(\w+)\.py", leaf.read_text(encoding="utf-8")))


def _arch(leaf):
    return NAME.fullmatch(leaf.stem)["net"].replace("-", "_").replace(".", "_")


# Of the leaves that share their bases, the one of the smallest network.
_by_size = sorted(LEAVES, key=lambda leaf: sum(get_variant(_arch(leaf)).widths), reverse=True)
SMALLEST = list({_bases(leaf): leaf for leaf in _by_size}.values())
OTHERS = [leaf for leaf in LEAVES if leaf not in SMALLEST]


def _load(leaf):
    cfg = Config.fromfile(leaf)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pretrained = False
    cfg.optim_wrapper.type = "OptimWrapper"  # mixed precision needs a GPU
    if "size" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)  # training batches are padded to it
    return cfg


def _ids(leaf):
    return leaf.stem


def test_every_published_row_has_a_config_and_an_entry():
    assert len(LEAVES) == 51
    assert sorted(ENTRIES) == sorted(leaf.stem for leaf in LEAVES)
    files = [(entry["Converted From"]["Weights"], entry["Converted From"].get("Folder")) for entry in ENTRIES.values()]
    assert len(set(files)) == 51


@pytest.mark.parametrize("leaf", LEAVES, ids=_ids)
def test_name_header_metafile_and_readme_agree(leaf):
    path = leaf.relative_to(ROOT).as_posix()
    text = leaf.read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    entry = ENTRIES[leaf.stem]
    name = NAME.fullmatch(leaf.stem)
    figure = next(iter(entry["Results"][0]["Metrics"].values()))
    origin = entry["Converted From"]

    assert len(text.splitlines()) <= 30
    assert entry["Config"] == path
    assert header.count(path) == 2  # to train, and to convert
    assert f"--nproc_per_node {name['gpus']} " in header or name["gpus"] == "1"
    assert int(re.search(r"Effective batch: (\d+)", header)[1]) == entry["Metadata"]["Batch Size"]
    published = re.search(r"Published: (?:mAP|mIoU) ([\d.]+) on .*; not reproduced here", header)
    assert float(published[1]) == figure
    for fact in ("Weights", "Folder", "Recipe"):
        assert origin.get(fact, "") in header

    lines = (ROOT / "mm_configs/README.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| [{leaf.stem}]"))
    assert float(row.split("|")[2]) == figure
    assert f"{origin.get('Folder', origin['Weights'].partition('/models/')[2])}`" in row


@pytest.mark.parametrize("leaf", by_framework(LEAVES))
def test_config_builds_what_its_name_says(leaf):
    cfg = _load(leaf)
    model = MODELS.build(cfg.model)
    name = NAME.fullmatch(leaf.stem)
    backbone = model.backbone
    assert backbone.model_name == _arch(leaf)
    assert backbone.out_indices == [3, 4]
    assert backbone.out_channels == list(get_variant(_arch(leaf)).widths[3:])
    assert cfg.train_dataloader.batch_size == int(name["batch"])
    assert cfg.train_cfg.max_epochs == int(name["epochs"])
    steps = cfg.optim_wrapper.get("accumulative_counts", 1)
    batch = cfg.train_dataloader.batch_size * int(name["gpus"]) * steps
    assert batch == ENTRIES[leaf.stem]["Metadata"]["Batch Size"]

    if name["stride"] is None:
        assert backbone.strides == [16, 32]
        assert cfg.auto_scale_lr.base_batch_size == batch
        assert list(model.neck.in_channels) == backbone.out_channels
        sides = [int(name["size"]) // stride for stride in backbone.strides]
        maps = [torch.zeros(1, chs, side, side) for chs, side in zip(backbone.out_channels, sides, strict=True)]
        with torch.inference_mode():
            levels = model.eval().neck(maps)
        assert [level.shape[1] for level in levels] == list(model.bbox_head.in_channels)
        anchors = model.bbox_head.prior_generator.grid_priors([level.shape[2:] for level in levels], device="cpu")
        assert sum(map(len, anchors)) == 3232
    else:
        assert backbone.strides[-1] == int(name["stride"])
        assert model.decode_head.in_channels == backbone.out_channels[model.decode_head.in_index]
        if isinstance(model.decode_head, MobileViTPSPHead):
            assert model.decode_head.psp_modules[0][1].out_channels == backbone.out_channels[1] // 4 // 16 * 16
        if model.with_auxiliary_head:
            assert model.auxiliary_head.in_channels == backbone.out_channels[model.auxiliary_head.in_index]
            assert model.auxiliary_head.channels == max(backbone.out_channels[0] // 4, 128)


@pytest.mark.parametrize("leaf", by_framework(SMALLEST))
def test_decay_and_learning_rates_of_the_recipe(leaf):
    cfg = _load(leaf)
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    of = {id(p): group for group in groups for p in group["params"]}
    decay, lr = cfg.optim_wrapper.optimizer.weight_decay, cfg.optim_wrapper.optimizer.lr
    # Of segmentors, CVNets v0.2 spares one-dimensional parameters; its recipe of the v1 model is v0.1's.
    spares = cfg.default_scope == "mmseg" and "schedule_voc12aug_50e_v0_1" not in _bases(leaf)
    old = cfg.default_scope == "mmseg" and not spares
    for key, parameter in model.named_parameters():
        assert of[id(parameter)]["weight_decay"] == (0 if spares and parameter.ndim == 1 else decay), key
        assert of[id(parameter)]["lr"] == pytest.approx(lr * (10 if old and "_head." in key else 1)), key


@pytest.mark.parametrize("leaf", [*by_framework(SMALLEST), *by_framework(OTHERS, "long")])
def test_train_step_and_predict(leaf):
    cfg = _load(leaf)
    model = MODELS.build(cfg.model)
    model.init_weights()
    is_detector = cfg.default_scope == "mmdet"
    if is_detector:
        from mmdet.testing import demo_mm_inputs

        batch = demo_mm_inputs(2, (3, 128, 128), num_classes=80)
    else:
        batch = _make_batch(model)

    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    data = model.data_preprocessor(batch, training=True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    assert all(0 <= float(value.detach()) < math.inf for value in parts.values())
    loss.backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle  # a parameter without gradient would stop distributed training
    optim_wrapper.step()

    model.eval()
    results = model.test_step(batch)
    if is_detector:
        for result in results:
            found = result.pred_instances
            assert len(found.bboxes) == len(found.scores) == len(found.labels)
            assert found.bboxes.isfinite().all()
            assert (found.scores > cfg.model.test_cfg.score_thr).all()
            assert ((found.labels >= 0) & (found.labels < 80)).all()
    else:
        classes = cfg.model.decode_head.num_classes
        for sample in results:
            assert sample.pred_sem_seg.data.shape == (1, *sample.ori_shape)
            assert 0 <= sample.pred_sem_seg.data.min() <= sample.pred_sem_seg.data.max() < classes


def _make_batch(model):
    rng = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (48, 72), "pad_shape": (64, 64)})
        labels = torch.randint(model.num_classes, (1, 64, 64), generator=rng)
        labels[:, :8] = 255
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = [torch.randint(256, (3, 64, 64), generator=rng, dtype=torch.uint8) for _ in samples]
    return {"inputs": images, "data_samples": samples}


# --- Recipes from end to end, on two real photographs with made-up labels.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder whose ``data/`` is laid out as the configs expect COCO, ADE20K and VOC."""
    root = tmp_path_factory.mktemp("mm")
    names = ["china", "flower"]
    photos = dict(zip(names, load_sample_images().images, strict=True))

    def save(path, array):
        path = root / "data" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    def blocks(classes, border=None):
        height, width = photos["china"].shape[:2]
        y, x = np.mgrid[:height, :width]
        labels = ((y // 64) * 10 + x // 64) % classes
        if border is not None:
            labels[:5] = border
        return labels.astype(np.uint8)

    for name, photo in photos.items():
        for split in ("train2017", "val2017"):
            save(f"coco/{split}/{name}.jpg", photo)
        for split in ("training", "validation"):
            save(f"ade/ADEChallengeData2016/images/{split}/{name}.jpg", photo)
            save(f"ade/ADEChallengeData2016/annotations/{split}/{name}.png", blocks(151))  # 0 is ignored
        save(f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg", photo)
        for masks in ("SegmentationClass", "SegmentationClassAug"):
            save(f"VOCdevkit/VOC2012/{masks}/{name}.png", blocks(21, border=255))
        save(f"coco_as_voc/train2017/{name}.jpg", photo)
        save(f"coco_as_voc/masks/{name}.png", blocks(21))
    lists = root / "data/VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for path, name in [("train", "china"), ("aug", "flower"), ("val", "china")]:
        (lists / f"{path}.txt").write_text(f"{name}\n")
    (root / "data/coco_as_voc/train_2017.txt").write_text("flower\n")

    images = [{"id": i, "file_name": f"{name}.jpg", "height": 427, "width": 640} for i, name in enumerate(names)]
    boxes = [(0, [40, 60, 300, 200]), (0, [400, 200, 100, 150]), (1, [200, 100, 220, 260])]
    content = {
        "images": images,
        "annotations": [
            {"id": i, "image_id": image, "category_id": i, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, box) in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(COCO_CLASSES)],
    }
    (root / "data/coco/annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / f"data/coco/annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def _shrink(value):
    """Turn the segmentors' 512 pixels into 64, wherever they stand in a config."""
    if isinstance(value, dict):
        return {key: _shrink(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and value[:2] not in ((512, 512), (100000, 512)):
        return type(value)(_shrink(item) for item in value)
    return tuple(64 if side == 512 else side for side in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("leaf", by_framework(SMALLEST))
def test_pipelines_give_what_the_recipe_says(leaf, data, monkeypatch):
    monkeypatch.chdir(data)
    cfg = _load(leaf)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    test = DATASETS.build(cfg.test_dataloader.dataset)
    size = (int(NAME.fullmatch(leaf.stem)["size"]),) * 2
    np.random.seed(0)
    for i in [*range(len(train))] * 2:
        packed = train[i]
        assert packed["inputs"].shape == (3, *size)
        if cfg.default_scope == "mmdet":
            boxes = packed["data_samples"].gt_instances.bboxes.tensor
            assert len(boxes)
            assert ((boxes >= 0) & (boxes <= size[0])).all()
        else:
            labels = packed["data_samples"].gt_sem_seg.data
            assert labels.shape == (1, *size)
            assert (labels[labels != 255] < cfg.model.decode_head.num_classes).all()

    packed = test[0]
    sample = packed["data_samples"]
    assert sample.ori_shape == (427, 640)
    if cfg.default_scope == "mmdet" or cfg.model.resize == "nearest":
        assert packed["inputs"].shape[1:] == size  # the aspect ratio is ignored
    else:
        stride = cfg.model.backbone.output_stride
        assert packed["inputs"].shape[1:] == (512, 767 // stride * stride)
    if cfg.default_scope == "mmseg":
        assert sample.gt_sem_seg.data.shape == (1, 427, 640)


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(leaf, id=leaf.stem, marks=pytest.mark.detection if "ssdlite" in leaf.stem else pytest.mark.long)
        for leaf in SMALLEST
    ],
)
def test_recipe_runs(leaf, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    cfg = Config(_shrink(_load(leaf).to_dict()))
    if cfg.default_scope == "mmdet":
        cfg.model.test_cfg.update(score_thr=0.0, nms_pre=2)  # some boxes: none at all would give no metric
    cfg.work_dir = str(tmp_path)
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    runner = Runner.from_cfg(cfg)
    runner.train()
    metrics = runner.test()
    metric = next(key for key in metrics if key.endswith(("bbox_mAP", "mIoU")))
    assert 0 <= metrics[metric] <= 100
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    assert saved["ema_state_dict"]["steps"] == 1
    assert list(tmp_path.glob("best_*"))

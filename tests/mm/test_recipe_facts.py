"""The configs say what the published recipes say, number by number.

Facts are in the reference's units, from the files that each config's header names; ``expected`` puts them in the words
of MMDetection and MMSegmentation. Everything that a runner reads of a parsed config is compared, but names of files.
"""

import copy
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

try:
    import timm_mobilevit.mm  # noqa: F401  registers what the configs name
except ImportError as missing:  # its message names the extra
    pytest.skip(str(missing), allow_module_level=True)

from mmengine.config import Config

LEAVES = {path.stem: path for path in (Path(__file__).parents[2] / "mm_configs").glob("mm*/[!_]*/*.py")}
LETTERS = {  # channels of the last two maps
    "v1-xxs": (64, 80),
    "v1-xs": (80, 96),
    "v1-s": (128, 160),
    "v3-xxs": (80, 128),
    "v3-xs": (160, 160),
    "v3-s": (256, 320),
}
DEGREES = 360


@dataclass(frozen=True)
class Facts:
    """A training as the reference has it."""

    batch: int  # images per GPU and step
    epochs: int
    lr: float
    min_lr: float
    weight_decay: float
    images: int = 128  # per update, on all GPUs
    steps: int = 1  # per update
    optimizer: str = "AdamW"
    warmup: tuple[int, float] = (500, 9e-5)  # iterations and first learning rate
    decay_flat: bool = True  # biases and norms too
    head_lr: int = 1  # times that of the backbone
    clip: float | None = None  # largest norm of the gradients
    ema: float = 5e-4  # weight of the newest
    dropout: float = 0.0  # in the transformers
    start: str | bool = True  # weights of the backbone
    old: bool = False  # CVNets v0.1: OpenCV, bilinear; v0.2: Pillow, bicubic
    # Segmentors
    size: int = 512
    output_stride: int = 32
    head_width: int = 512
    auxiliary: bool = True
    init: str = "uniform"
    interpolation: str = "bicubic"
    learned_augmentation: bool = False  # RangeAugment: of its ranges none can be written down


def channels(net: str) -> tuple[int, int]:
    return LETTERS.get(net) or tuple(round(base * float(net[3:])) for base in (384, 512))


def facts_of(method: str, net: str, data: str, stride: str) -> Facts:
    old = net in LETTERS
    dropout = 0.0 if not old else 0.05 if net.endswith("xxs") else 0.1
    if method == "ssdlite":
        return Facts(
            batch=64 if net == "v3-xxs" else 32,
            images=256 if net == "v3-xxs" else 128,
            epochs=200,
            lr=4e-3 if net == "v3-s" else 9e-4,
            min_lr=1e-6,
            weight_decay=0.01 if old else 0.05,
            dropout=dropout,
            start="cvnets_in1k_384" if net == "v2-2.0" else True,
            old=old,
            size=320,
        )
    if data == "ade20k":
        learned = net == "v1-s"  # CoreNet's RangeAugment; the others are CVNets v0.2
        return Facts(
            batch=16 if learned else 4,
            images=32 if learned else 16,
            steps=2 if learned else 1,
            epochs=50 if learned else 120,
            optimizer="SGD",
            lr=0.02,
            min_lr=1e-4 if learned else 2e-4,
            warmup=(0, 0.0),
            weight_decay=1e-4,
            decay_flat=False,
            clip=None if learned else 10,
            dropout=dropout,
            start="cvnets_rangeaugment_in1k" if learned else True,
            output_stride=8,
            init="normal" if learned else "uniform",
            learned_augmentation=learned,
        )
    if not old:
        return Facts(
            batch=32,
            epochs=50,
            lr=5e-4,
            min_lr=1e-6,
            warmup=(500, 5e-5),
            weight_decay=0.05,
            decay_flat=False,
            clip=10,
            output_stride=16,
        )
    again = stride == "8"  # v0.2's retraining of MobileViTv1-S
    batch = {"v3-s": 12, "v3-xs": 12, "v3-xxs": 16}.get(net, 16 if again else 32)
    return Facts(
        batch=batch,
        images=128 if again else 4 * batch,
        steps=2 if again else 1,
        epochs=50,
        lr=9e-4,
        min_lr=1e-6,
        weight_decay=0.01,
        head_lr=10,
        dropout=dropout,
        old=not again,
        output_stride=8 if again else 16,
        head_width=512 if again else 256,
        auxiliary=again,
        init="normal",
        interpolation="bilinear",
    )


def schedule(facts: Facts, detects: bool) -> dict:
    optimizer = {"type": facts.optimizer, "lr": facts.lr, "weight_decay": facts.weight_decay}
    optimizer |= {"betas": (0.9, 0.999)} if facts.optimizer == "AdamW" else {"momentum": 0.9}
    if detects:
        optimizer["eps"] = 1e-8
    wrapper = {"type": "AmpOptimWrapper", "optimizer": optimizer}
    if facts.steps > 1:
        wrapper["accumulative_counts"] = facts.steps
    if not facts.decay_flat:
        wrapper["paramwise_cfg"] = {"flat_decay_mult": 0}
    elif facts.head_lr != 1:
        heads = ("decode_head", "auxiliary_head")
        wrapper["paramwise_cfg"] = {"custom_keys": {head: {"lr_mult": facts.head_lr} for head in heads}}
    if facts.clip:
        wrapper["clip_grad"] = {"max_norm": facts.clip}
    elif facts.head_lr != 1 or facts.learned_augmentation:
        wrapper["clip_grad"] = None
    cosine = {"type": "CosineAnnealingLR", "by_epoch": True}  # to the last epoch: test_configs.py sees that it does
    # A ratio: heads that learn faster end faster in the same proportion, and a rate of the user's own never rises.
    cosine |= {"eta_min_ratio": facts.min_lr / facts.lr}
    iterations, first = facts.warmup
    linear = {"type": "WarmUpLR", "start_factor": first / facts.lr, "by_epoch": False, "iterations": iterations}
    # A gamma of 10 for trainings that are shorter than the published ones; test_short_trainings.py has what it does.
    ema = {"type": "EMAHook", "ema_type": "MomentumAnnealingEMA", "momentum": facts.ema, "gamma": 10}
    ema |= {"update_buffers": True}
    return {
        "optim_wrapper": wrapper,
        "param_scheduler": [linear, cosine] if iterations else [cosine],
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": facts.epochs, "val_interval": 1},
        "custom_hooks": [{**ema, "priority": 49}],
        **({"auto_scale_lr": {"enable": False, "base_batch_size": facts.images}} if detects else {}),
    }


def preprocessing(kind: str, **padding) -> dict:
    """Images in [0, 1], RGB."""
    return {"type": kind, "mean": [0] * 3, "std": [255] * 3, "bgr_to_rgb": True, **padding}


def backbone(facts: Facts, net: str) -> dict:
    return {
        "type": "TimmMobileViT",
        "model_name": f"mobilevit{re.sub('[-.]', '_', net)}",
        "pretrained": facts.start,
        "out_indices": (3, 4),
        **({"proj_drop_rate": facts.dropout} if facts.dropout else {}),
        **({"output_stride": facts.output_stride} if facts.output_stride != 32 else {}),
    }


def loading(facts: Facts) -> tuple[dict, dict]:
    """How images are decoded and resized."""
    return ({}, {}) if facts.old else ({"imdecode_backend": "pillow"}, {"backend": "pillow"})


def loaders(facts: Facts, train: dict, test: dict, test_batch: int, **options) -> dict:
    common = {"num_workers": 4, "persistent_workers": True}
    sampler = {"type": "DefaultSampler", "shuffle": True}
    val = {"batch_size": test_batch, **common, "sampler": {**sampler, "shuffle": False}, "dataset": test}
    return {
        "train_dataloader": {"batch_size": facts.batch, **common, **options, "sampler": sampler, "dataset": train},
        "val_dataloader": val,
        "test_dataloader": val,
    }


def detector(facts: Facts, net: str) -> dict:
    levels = (512, 256, 256, 128, 128, 64)
    decode, resize = loading(facts)
    size = {"type": "Resize", "scale": (facts.size, facts.size), "keep_ratio": False, **resize}
    if not facts.old:
        size["interpolation"] = "bicubic"
    load = [{"type": "LoadImageFromFile", **decode}]
    annotations = {"type": "LoadAnnotations", "with_bbox": True}
    flip = {"type": "RandomFlip", "prob": 0.5}
    if facts.old:  # additive brightness of 0.2; a hue of 0.05 · 255 of OpenCV's units of two degrees, made whole
        colours = {"type": "PhotoMetricDistortion", "brightness_delta": 0.2 * 255, "hue_delta": 2 * int(0.05 * 255)}
        augment = [{"type": "SSDCrop", "min_size": 0}, colours, flip, size]
    else:
        brightness = {"type": "RandomBrightnessFactor", "factors": (0.875, 1.125), "prob": 0.5}
        colours = {"type": "PhotoMetricDistortion", "brightness_delta": 0, "hue_delta": 0.05 * DEGREES}
        augment = [{"type": "SSDCrop", "min_size": 100}, flip, size, brightness, colours]
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    # Of v0.1, 200 of each class and no limit on candidates; of v0.2, 400 candidates of each class and 200 in all.
    rules = (
        {"score_thr": 0.05, "nms_pre": -1, "max_per_class": 200, "max_per_img": -1}
        if facts.old
        else {"score_thr": 0.01, "nms_pre": 400, "max_per_img": 200}
    )
    evaluator = {"type": "CocoMetric", "metric": "bbox", "proposal_nums": (1, 10, 100)}
    return {
        "model": {
            "type": "SingleStageDetector",
            "data_preprocessor": preprocessing("DetDataPreprocessor", pad_size_divisor=1),
            "backbone": backbone(facts, net),
            "neck": {
                "type": "SSDLiteNeck",
                "in_channels": channels(net),
                "proj_channels": levels[:2],
                "extra_channels": levels[2:5],
                "pool_channels": levels[5],
            },
            "bbox_head": {
                "type": "SSDLiteHead",
                "num_classes": 80,
                "in_channels": levels,
                "anchor_generator": {
                    "type": "SSDLiteAnchorGenerator",
                    "ratios": ((2, 3),) * 5 + ((2,),),
                    "min_ratio": 0.1,
                    "max_ratio": 1.05,
                    "input_size": facts.size,
                },
                "bbox_coder": {
                    "type": "DeltaXYWHBBoxCoder",
                    "target_means": [0] * 4,
                    "target_stds": [0.1, 0.1, 0.2, 0.2],
                    "clip_border": False,
                },
            },
            "train_cfg": {
                "assigner": {
                    "type": "MaxIoUAssigner",
                    "pos_iou_thr": 0.5,
                    "neg_iou_thr": 0.5,
                    "min_pos_iou": 0,  # each object has its best anchor
                    "ignore_iof_thr": -1,
                    "gt_max_assign_all": False,
                },
                "sampler": {"type": "PseudoSampler"},
                "smoothl1_beta": 1,
                "neg_pos_ratio": 3,
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "test_cfg": {**rules, "nms": {"type": "nms", "iou_threshold": 0.5}},
        },
        **loaders(
            facts,
            {
                "type": "CocoDataset",
                "filter_cfg": {"filter_empty_gt": True},
                "pipeline": [*load, annotations, *augment, {"type": "PackDetInputs"}],
            },
            {
                "type": "CocoDataset",
                "test_mode": True,
                "pipeline": [*load, size, annotations, {"type": "PackDetInputs", "meta_keys": keys}],
            },
            test_batch=32,
        ),
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
    }


def decode_head(facts: Facts, method: str, net: str, common: dict) -> dict:
    head = {"in_index": 1, "in_channels": channels(net)[1], "channels": facts.head_width, **common}
    if method == "pspnet":
        branch = channels(net)[1] // 4 // 16 * 16
        return {**head, "type": "MobileViTPSPHead", "pool_scales": (1, 2, 3, 6), "branch_channels": branch}
    rates = (12, 24, 36) if facts.output_stride == 8 else (6, 12, 18)
    head |= {"type": "MobileViTASPPHead", "dilations": (1, *rates)}
    return {**head, "branch_dropout": 0.1} if facts.old else head


def segmentor(facts: Facts, method: str, net: str, data: str) -> dict:
    size = (facts.size, facts.size)
    classes = {"ade20k": 150, "voc12aug": 21}[data]
    entropy = {"type": "CrossEntropyLoss", "avg_non_ignore": True}
    common = {
        "num_classes": classes,
        "dropout_ratio": 0.1,
        "norm_cfg": {"type": "BN"},
        "align_corners": not facts.old,
        "init_cfg": {"type": "Kaiming", "layer": "Conv2d", "distribution": facts.init},
    }
    auxiliary = {
        "type": "FCNHead",
        "in_index": 0,
        "in_channels": channels(net)[0],
        "channels": max(channels(net)[0] // 4, 128),
        "num_convs": 1,
        "kernel_size": 3,
        "concat_input": False,
        "loss_decode": {**entropy, "loss_weight": 0.4},
        **common,
    }
    decode, resize = loading(facts)
    load = {"type": "LoadImageFromFile", **decode}
    labels = {"type": "LoadAnnotations", **({"reduce_zero_label": True} if data == "ade20k" else {})}
    flip, crop = {"type": "RandomFlip", "prob": 0.5}, {"type": "RandomCrop", "crop_size": size}
    if facts.old:
        # Shorter sides of 256…1024, made 512 if less: so many of all sizes are.
        sides, small = 1024 - 256 + 1, 512 - 256 + 1
        scale = {"keep_ratio": True}
        choices = [
            [{"type": "Resize", "scale": (100000, 512), **scale}],
            [{"type": "RandomResize", "scale": [(100000, 513), (100000, 1024)], **scale}],
        ]
        choice = {"type": "RandomChoice", "transforms": choices, "prob": [small / sides, 1 - small / sides]}
        augment = [choice, crop, flip]
        test = [{"type": "Resize", "scale": size, "keep_ratio": False}]
    else:
        resize |= {"keep_ratio": True, "interpolation": facts.interpolation}
        sides = {"type": "RandomResize", "scale": [(1024, 256), (1024, 768)], **resize}
        augment = [sides, flip, {**crop, "cat_max_ratio": 0.75}, {"type": "Pad", "size": size}]
        if not facts.learned_augmentation:
            augment += [
                {"type": "RandomGaussianBlur", "max_radius": 1, "prob": 0.5},
                {
                    "type": "RandomPhotometricDistort",
                    "brightness": (0.875, 1.125),
                    "contrast": (0.5, 1.5),
                    "saturation": (0.5, 1.5),
                    "hue": (-0.05, 0.05),
                    "prob": 0.5,
                },
                {"type": "RandomRotate", "prob": 1, "degree": 10, "pad_val": 0, "seg_pad_val": 255},
            ]
        fit = {"type": "ResizeToFloorMultiple", "size_divisor": facts.output_stride}
        test = [{"type": "Resize", "scale": (100000, 512), **resize}, fit]
    pack = {"type": "PackSegInputs"}
    kind = {"ade20k": "ADE20KDataset", "voc12aug": "PascalVOCDataset"}[data]
    train = {"type": kind, "pipeline": [load, labels, *augment, pack]}
    if data == "voc12aug":
        train = {"type": "ConcatDataset", "datasets": [train] * 3}  # VOC, SBD and COCO
    evaluator = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}
    return {
        "model": {
            "type": "MobileViTEncoderDecoder",
            "resize": "nearest" if facts.old else "direct",
            "data_preprocessor": preprocessing("SegDataPreProcessor", size=size, pad_val=0, seg_pad_val=255),
            "backbone": backbone(facts, net),
            "decode_head": {**decode_head(facts, method, net, common), "loss_decode": entropy},
            "auxiliary_head": auxiliary if facts.auxiliary else None,
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        },
        **loaders(facts, train, {"type": kind, "pipeline": [load, *test, labels, pack]}, test_batch=1, drop_last=True),
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
    }


# Not of any recipe: how often to report and to save.
RUNTIME = {
    "default_hooks.logger.interval": 50,
    "default_hooks.checkpoint.interval": 1,
    "default_hooks.checkpoint.max_keep_ckpts": 3,
    "env_cfg.mp_cfg.opencv_num_threads": 0,
}
# Files, and what a base leaves behind for those that inherit from it; no runner reads that.
IGNORED = re.compile(
    r"(.*\.)?(data_root|ann_file|data_prefix\..*)|(default_hooks|env_cfg|visualizer|custom_imports)\..*"
    r"|(dataset_type|image_size|crop_size|(train|test)_pipeline|datasets|voc_train|voc_aug|coco_as_voc)(\..*)?"
    r"|runner_type|default_scope|sync_bn|log_.*|load_from|resume|(val|test)_cfg\.type|tta_(model|pipeline)\..*"
)


def leaves(value, path=""):
    """Paths of a nested config and what is there, empty containers left out."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def expected(name: str) -> dict:
    """Path and value of everything in a config that the published recipe determines."""
    method, net, stride, data = re.fullmatch(
        r"(ssdlite|deeplabv3|pspnet)_mobilevit(v[123]-[a-z0-9.]+?)(?:-rangeaugment)?(?:-d(\d+))?_.*e_([a-z0-9]+)-.*",
        name,
    ).groups()
    facts = facts_of(method, net, data, stride)
    config = detector(facts, net) if method == "ssdlite" else segmentor(facts, method, net, data)
    processor = {"log_processor.window_size": 50} if method == "ssdlite" else {}
    return {**dict(leaves({**config, **schedule(facts, method == "ssdlite")})), **RUNTIME, **processor}


def equal(one, other) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)]
    return math.isclose(one, other, rel_tol=1e-9) if all(numbers) else type(one) is type(other) and one == other


def differences(config: dict, wanted: dict) -> list[str]:
    """Paths at which a parsed config says something else than the recipe."""
    found = {path: value for path, value in leaves(config) if path in wanted or not IGNORED.fullmatch(path)}
    return [
        f"{path}: {found.get(path, 'nothing')!r} instead of {wanted.get(path, 'nothing')!r}"
        for path in {**wanted, **found}
        if path not in wanted or path not in found or not equal(found[path], wanted[path])
    ]


@pytest.fixture(scope="module")
def configs() -> dict[str, dict]:
    return {name: Config.fromfile(path).to_dict() for name, path in LEAVES.items()}


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_config_says_what_the_recipe_says(name, configs):
    assert differences(configs[name], expected(name)) == []


def mutate(config: dict, path: str) -> None:
    """Change the number at a path; tuples on the way become lists, which mmengine takes as well."""
    *way, last = path.split(".")
    place = config
    for key in way:
        key = key if isinstance(place, dict) else int(key)
        if isinstance(place[key], tuple):
            place[key] = list(place[key])
        place = place[key]
    last = last if isinstance(place, dict) else int(last)
    value = place[last]
    place[last] = not value if isinstance(value, bool) else value * 1.01 + (value == 0) * 0.01


def test_every_changed_number_is_noticed(configs):
    """One after the other, each number and switch of each parsed config that is not a leftover of a base."""
    changed = 0
    for name, config in configs.items():
        wanted = expected(name)
        for section, content in config.items():
            of_section = {path: value for path, value in wanted.items() if path.partition(".")[0] == section}
            for path, value in leaves({section: content}):
                if isinstance(value, int | float) and (path in wanted or not IGNORED.fullmatch(path)):
                    mutant = {section: copy.deepcopy(content)}
                    mutate(mutant, path)
                    assert [line.partition(":")[0] for line in differences(mutant, of_section)] == [path], name
                    changed += 1
    assert changed > 100 * len(configs)

"""Official detection and segmentation checkpoints in the names of our detectors and segmentors."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor

from ..convert.layouts import ChannelOrder
from ..convert.matching import some
from ..convert.state_dicts import source_names
from ..variants import get_variant
from ._evaluated_data import evaluated_dataset
from ._installed import enter_scope

STEM = "backbone.stem.conv.weight"

# Substitutions, applied in this order, that turn our names into those of CVNets.
_SSD_RULES = [
    (r"^neck\.projections\.(\d)\.", r"ssd_heads.\1.proj_layer.block."),
    (r"^neck\.extra_layers\.0\.", "extra_layers.os_64."),
    (r"^neck\.extra_layers\.1\.", "extra_layers.os_128."),
    (r"^neck\.extra_layers\.2\.", "extra_layers.os_256."),
    (r"\.depthwise_conv\.", ".dw_conv.block."),
    (r"\.pointwise_conv\.", ".pw_conv.block."),
    (r"^neck\.pool_layer\.1\.", "extra_layers.os_-1.1.block."),
    (r"^bbox_head\.predictors\.5\.", "ssd_heads.5.loc_cls_layer.block.conv."),
    (r"^bbox_head\.predictors\.(\d)\.0\.", r"ssd_heads.\1.loc_cls_layer.dw_conv.block."),
    (r"^bbox_head\.predictors\.(\d)\.1\.", r"ssd_heads.\1.loc_cls_layer.pw_conv.block.conv."),
    (r"\.bn\.", ".norm."),
]
_ASPP_RULES = [
    (r"^decode_head\.aspp_modules\.(\d)\.", r"seg_head.aspp.aspp_layer.convs.\1.block."),
    (r"^decode_head\.image_pool\.1\.", "seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block."),
    (r"^decode_head\.bottleneck\.", "seg_head.aspp.aspp_layer.project.block."),
]
_PSP_RULES = [
    (r"^decode_head\.psp_modules\.(\d)\.1\.", r"seg_head.psp_layer.psp_branches.\1.1.block."),
    (r"^decode_head\.bottleneck\.", "seg_head.psp_layer.fusion.0.block."),
]
_SEG_RULES = [
    (r"^auxiliary_head\.convs\.0\.", "seg_head.aux_head.0.block."),
    (r"^auxiliary_head\.conv_seg\.", "seg_head.aux_head.2.block.conv."),
    (r"\.bn\.", ".norm."),
]
_V01_CLASSIFIER = "seg_head.classifier.classifier.block.conv."  # of CVNets v0.1, which trained on BGR images
_V02_CLASSIFIER = "seg_head.classifier.block.conv."


def convert_state_dict(
    state_dict: Mapping[str, Tensor], model: Any, channel_order: ChannelOrder | None = None
) -> dict[str, Tensor]:
    """Convert an official detection or segmentation checkpoint of CVNets, CoreNet or MobileViTv3.

    Besides the names, the order of classes (background last in mmdet, first there), of ASPP branches (pool first in
    mmseg, last there) and of input channels are converted.

    Args:
        state_dict: Flat state dict with ``encoder.``, ``extra_layers.``, ``ssd_heads.`` or ``seg_head.``. It is not
            changed.
        model: Detector or segmentor, built from one of our configs.
        channel_order: Order of the input channels that the file was trained with; None takes the known one: BGR for the
            code that trained v1 and the letter sizes of v3 (CVNets v0.1), RGB for later code.

    Returns:
        A state dict for ``model.load_state_dict`` with ``strict=True``.

    Raises:
        ValueError: If names or shapes do not fit; the message names them.
    """
    arch = model.backbone.model_name
    rules = _rules(model, state_dict)
    out: dict[str, Tensor] = {}
    missing, wrong = [], []
    left_over = dict(state_dict)
    if not hasattr(model, "auxiliary_head"):  # used in training only, so a model without it may take the file
        left_over = {key: value for key, value in left_over.items() if not key.startswith("seg_head.aux_head.")}
    for key, like in model.state_dict().items():
        theirs = _their_name(key, arch, rules)
        if key.endswith("num_batches_tracked") and theirs not in state_dict:
            out[key] = torch.zeros((), dtype=torch.int64)
            continue
        if theirs not in state_dict:
            missing.append(theirs)
            continue
        tensor = left_over.pop(theirs)
        if tensor.shape != like.shape:
            wrong.append(f"{theirs} {list(tensor.shape)} instead of {list(like.shape)}")
        out[key] = tensor
    if missing or wrong or left_over:
        raise ValueError(_complain(type(model).__name__, arch, missing, wrong, list(left_over)))

    if hasattr(model, "bbox_head"):
        for key in out:
            if re.fullmatch(r"bbox_head\.predictors\.(5|\d\.1)\.(weight|bias)", key):
                out[key] = _background_last(out[key], 4 + model.bbox_head.cls_out_channels)
    elif "decode_head.image_pool.1.conv.weight" in out:
        key = "decode_head.bottleneck.conv.weight"
        *branches, pool = out[key].chunk(5, dim=1)
        out[key] = torch.cat([pool, *branches], dim=1)
    if (channel_order or _known_order(state_dict, arch)) == "bgr":
        out[STEM] = out[STEM].flip(1)
    return out


def _rules(model: Any, state_dict: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    if hasattr(model, "bbox_head"):
        return _SSD_RULES
    head = getattr(model, "decode_head", None)
    if head is None:
        raise ValueError(
            f"official checkpoints are those of SSDLite, DeepLabv3 and PSPNet, not of {type(model).__name__}"
        )
    classifier = _V01_CLASSIFIER if any(key.startswith(_V01_CLASSIFIER) for key in state_dict) else _V02_CLASSIFIER
    branches = _ASPP_RULES if hasattr(head, "aspp_modules") else _PSP_RULES
    return [*branches, (r"^decode_head\.conv_seg\.", classifier), *_SEG_RULES]


def _their_name(key: str, arch: str, rules: list[tuple[str, str]]) -> str:
    if key.startswith("backbone."):
        return "encoder." + source_names(key.removeprefix("backbone."), arch, "cvnets")[0]
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _background_last(predictor: Tensor, per_anchor: int) -> Tensor:
    """Reorder the outputs of a predictor, which are boxes, background and classes for each anchor."""
    outputs = torch.unflatten(predictor, 0, (-1, per_anchor))
    boxes, background, classes = torch.split(outputs, [4, 1, per_anchor - 5], dim=1)  # type: ignore[no-untyped-call]
    return torch.cat([boxes, classes, background], dim=1).flatten(0, 1)


def _known_order(state_dict: Mapping[str, Tensor], arch: str) -> ChannelOrder:
    """Return BGR for CVNets v0.1: all letter sizes, except v1 segmentors with the names of the later code."""
    retrained = any(key.startswith(_V02_CLASSIFIER) for key in state_dict)
    return "rgb" if get_variant(arch).separable or retrained else "bgr"


def _complain(model: str, arch: str, missing: list[str], wrong: list[str], left_over: list[str]) -> str:
    parts = [
        f"{what} {some(names)}"
        for what, names in (("missing", missing), ("wrong shape", wrong), ("unknown", left_over))
        if names
    ]
    if any(n.startswith("encoder.") for n in missing) and not any(n.startswith("encoder.") for n in left_over):
        parts.insert(0, "it has no encoder: a classification checkpoint goes into the backbone (pretrained=FILE)")
    return f"this is no checkpoint of a {model} over {arch}: {'; '.join(parts)}"


def dataset_meta(config: Any) -> dict[str, Any]:
    """Return names and colours of the classes that a config tests or validates on, as checkpoints have them in meta.

    Args:
        config: Path of a config, or a ``mmengine.Config``.

    Returns:
        ``classes`` and, if the data set has one, ``palette``, in plain Python types. Empty without a data set.

    Raises:
        ValueError: If the type of the data set is not registered, or its palette has no colour for some class.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    enter_scope(cfg)
    data = evaluated_dataset(cfg)
    if data is None:
        return {}
    kind = data.type
    if not inspect.isclass(kind):
        with DATASETS.switch_scope_and_registry(None) as registry:  # mmdet's or mmseg's, as the config says
            kind = registry.get(kind)
    if kind is None:
        raise ValueError(f"the config tests on a data set of the type {data.type}, which is not registered")
    known, meta = kind.METAINFO, kind._load_metainfo(data.get("metainfo"))  # which also reads files of class names
    if not meta.get("classes"):
        return {}
    names = meta["classes"]
    classes = (names,) if isinstance(names, str) else tuple(str(name) for name in names)
    colours = meta.get("palette") or ()
    if classes != tuple(known.get("classes") or ()) and "palette" not in (data.get("metainfo") or {}):
        colours = ()  # the data set's own colours are those of other classes
    if not colours:
        return {"classes": classes}
    try:
        palette = [(int(red), int(green), int(blue)) for red, green, blue in colours]  # mmdet takes no lists
    except (TypeError, ValueError):
        palette = []
    if len(palette) < len(classes):
        raise ValueError(
            f"the palette of the data set must have a colour (red, green, blue) for each of {len(classes)} classes, "
            f"got {colours!r}: set metainfo=dict(classes=(...), palette=[...])"
        )
    return {"classes": classes, "palette": palette}

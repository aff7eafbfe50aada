"""Trial of the model of a config: it is built, and computes its loss on random images."""

import re
import traceback
import warnings
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ._building import described_model
from ._installed import enter_scope

_SIDE = 512  # pixels; divisible by every stride in use, and large enough for heads that pool over windows
_IMAGES = 2  # batch norms learn nothing from one image whose map is a single pixel
_MODES = ("loss", "tensor")  # of mmengine's models: all that is trained, and the network alone
_CHANNELS = re.compile(r"to have \d+ channels, but got \d+")  # a convolution that was built for other maps


def find_fault(config: Config, before: Config) -> str | None:
    """Build the model of a config and run it once on the CPU, without weights.

    Args:
        config: Config of a detector or segmentor that was changed.
        before: The config before the change. An error that it has too does not come from the change.

    Returns:
        The place and the reason of the failure; None if there is none, or only one that was there before.
    """
    for mode in _MODES:
        fault = _try(config, mode)
        if fault is None or _CHANNELS.search(fault) or _try(before, mode) is None:
            return fault
    return None


def _try(config: Config, mode: str) -> str | None:
    model: Any = None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _build(config)
            data = model.data_preprocessor(_make_batch(config, model.backbone), True)
            model(**data, mode=mode)
    except Exception as error:  # models raise anything
        text = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # mmdet and mmseg assert a lot
        return f"{_place(model, error)}: {type(error).__name__}: {text}"
    return None


def _place(model: Any, error: Exception) -> str:
    """Return the innermost part of the model in whose code the error was raised."""
    if model is None:
        return "when it is built"
    names = {id(module): name for name, module in model.named_modules()}
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = [names[id(owner)] for owner in owners if names.get(id(owner))]
    return f"in {inside[-1] if inside else type(model).__name__}"


def _build(config: Config) -> nn.Module:
    enter_scope(config)
    described = described_model(config)
    preprocessor = described.get("data_preprocessor") or {}
    if preprocessor.get("size"):
        preprocessor["size"] = (_SIDE, _SIDE)
    if preprocessor.get("batch_augments"):  # they change sizes, and ask the runner for the iteration
        preprocessor["batch_augments"] = None
    if described.get("teacher_ckpt"):  # which the constructor downloads
        described["teacher_ckpt"] = None
    return revert_sync_batchnorm(MODELS.build(described)).train()  # type: ignore[no-any-return]


def _make_batch(config: Config, backbone: Any) -> dict[str, Any]:
    """Return images with boxes and masks, or with classes of pixels, all of the first class."""
    channels = getattr(backbone, "in_channels", None) or config.model.backbone.get("in_channels", 3)
    if DefaultScope.get_current_instance().scope_name == "mmdet":  # which pure-Python configs do not name
        from mmdet.testing import demo_mm_inputs

        shape = (channels, _SIDE, _SIDE)
        batch: dict[str, Any] = demo_mm_inputs(
            _IMAGES, shape, num_items=[2, 3], num_classes=2, with_mask=True, with_semantic=True
        )
        for sample in batch["data_samples"]:
            sample.gt_instances.labels.zero_()
        return batch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = (_SIDE, _SIDE)
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), size)
    samples = [SegDataSample(metainfo=meta) for _ in range(_IMAGES)]
    for sample in samples:
        for name in ("gt_sem_seg", "gt_edge_map"):  # some heads learn edges
            sample.set_data({name: PixelData(data=torch.zeros(1, *size, dtype=torch.int64))})
    return {"inputs": list(torch.randint(256, (_IMAGES, channels, *size), dtype=torch.uint8)), "data_samples": samples}

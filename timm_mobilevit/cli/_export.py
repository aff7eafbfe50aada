"""Directories that timm loads and the Hugging Face Hub takes."""

from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from .._files import filling
from ._labels import class_names


def write_directory(
    model: nn.Module,
    out: Path,
    *,
    published: bool = False,
    labels: Path | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Nothing half-written stays behind, and never one of the two without the other. Other files in ``out`` stay.

    Args:
        model: A timm model.
        out: Directory to write to.
        published: Whether these are the published weights that the model's pretrained row describes. Otherwise their
            tag, licence and origin are left out, since they say nothing about other weights.
        labels: File with the class names to record.
        img_size: Side of the input in pixels to record instead of the row's.
        crop_pct: Centre crop to record instead of the row's.

    Raises:
        ValueError: If the model has another number of classes than the row or the label file.
    """
    cfg: Any = model.pretrained_cfg
    if published and model.num_classes not in (0, cfg["num_classes"]):
        raise ValueError(
            f"{cfg['architecture']}.{cfg['tag']} has {cfg['num_classes']} classes, but this checkpoint has "
            f"{model.num_classes}; leave out the tag for weights of your own"
        )
    if not published:
        for key in ("tag", "license", "origin_url"):
            cfg.pop(key, None)
    model_config = {"label_names": class_names(model, labels)} if labels else {}
    data_config = {"img_size": img_size, "crop_pct": crop_pct}

    with filling(out) as stage:
        save_for_hf(model, stage, model_config=model_config, safe_serialization=True, data_config=data_config)
        # safetensors writes a file for the owner's eyes only; give it the permissions that any new file gets.
        (stage / "model.safetensors").chmod((stage / "config.json").stat().st_mode)

"""Writing a model as a directory that timm loads and the Hugging Face Hub takes."""

import os
import shutil
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from ._labels import class_names


def check_target(out: Path, *, force: bool = False) -> None:
    """Refuse a target that would overwrite something.

    Raises:
        ValueError: If ``out`` is a file, or a directory that is not empty and ``force`` is not set.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a directory to write to")
    if not force and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another directory, or overwrite with --force")


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

    Nothing half-written stays behind: the files are written beside ``out`` and then moved. Other files in ``out``
    stay.

    Args:
        model: A timm model.
        out: Directory to write to.
        published: Whether these are the published weights that the model's pretrained row describes. Otherwise their
            tag, licence and origin are left out: they say nothing about weights that somebody trained.
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

    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        save_for_hf(model, new, model_config=model_config, safe_serialization=True, data_config=data_config)
        # safetensors writes a file for the owner's eyes only; give it the permissions that any new file gets.
        (new / "model.safetensors").chmod((new / "config.json").stat().st_mode)
        if out.exists():
            for file in new.iterdir():
                os.replace(file, out / file.name)
        else:
            os.replace(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)

"""``timm-mobilevit convert``."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..export.formats import is_exported
from ..weights.file_kinds import ENDINGS
from ._options import Config, CropPct, Entry, Force, ImgSize, Labels, Prefix, given_option, model_names

EXAMPLES = (
    "timm-mobilevit convert checkpoint_ema_best.pt --arch mobilevitv3_s --tag micron_in1k --out mobilevitv3_s",
    "timm-mobilevit convert output/train/model_best.pth.tar --arch mobilevitv3_xxs --img-size 64 "
    "--labels classes.txt --out digits",
    "timm-mobilevit convert distilled.pth --prefix student --out student",
    "timm-mobilevit convert my_bgr_training.pt --arch mobilevitv2_1_0 --channel-order bgr --out converted",
    "timm-mobilevit convert coco-ssd-mobilevitv2-1.0.pt --config ssdlite_mobilevitv2-1.0 --out ssdlite.pth",
)

# As in convert.layouts, which is slow to import.
Source = Literal["auto", "cvnets", "transformers", "mmpretrain", "timm"]
ChannelOrder = Literal["rgb", "bgr"]


def convert(
    context: typer.Context,
    src: Annotated[Path, typer.Argument(help="Checkpoint: .pt, .pth, .pth.tar, .bin or .safetensors.")],
    out: Annotated[
        Path, typer.Option(help="Directory to write model.safetensors and config.json to; with --config, a .pth file.")
    ],
    arch: Annotated[
        str,
        typer.Option(
            help="Architecture of the checkpoint, if several fit; `timm-mobilevit list` shows all.",
            show_default=False,
            autocompletion=model_names,
        ),
    ] = "",
    config: Config = "",
    source: Annotated[
        Source,
        typer.Option(help="Format of the checkpoint: cvnets is also CoreNet's and MobileViTv3's; auto finds out."),
    ] = "auto",
    channel_order: Annotated[
        ChannelOrder | None,
        typer.Option(
            help="Order of the checkpoint's input channels, where it is not the one known for this format and "
            "architecture. What is written always takes RGB.",
            show_default=False,
        ),
    ] = None,
    prefix: Prefix = None,
    entry: Entry = None,
    tag: Annotated[
        str,
        typer.Option(
            help="Published weights that the checkpoint holds: config.json gets their preprocessing, licence and "
            "origin. Without it, only the preprocessing of the architecture's default weights.",
            show_default=False,
        ),
    ] = "",
    img_size: ImgSize = None,
    crop_pct: CropPct = None,
    labels: Labels = None,
    force: Force = False,
) -> None:
    """Convert a checkpoint to safetensors and a config.json, or for MMDetection and MMSegmentation.

    The directory written is what timm.create_model("local-dir:DIR", pretrained=True) loads and what
    timm.models.push_to_hf_hub uploads; other files in it stay. Class names, size and crop go into config.json.

    With --config, an official detection or segmentation checkpoint, or one of a training, becomes one for the tools of
    MMDetection and MMSegmentation.
    """
    from ._targets import reserve_file, reserve_folder

    if arch and config:
        raise typer.BadParameter("--arch is for a classifier or backbone, --config for a detector or segmentor")
    if tag and not arch:
        raise typer.BadParameter("--tag goes with --arch")
    if config:
        if option := given_option(context, ("source", "prefix", "img_size", "crop_pct", "labels")):
            raise typer.BadParameter(f"{option} is for a classifier or backbone, not for a --config")
        if out.suffix != ".pth":
            raise ValueError(f"with --config, --out is the .pth file to write, got {out}")
        reserve_file(context, out, force=force)
        _convert_dense(src, config, out, channel_order, entry)
        typer.echo(f"Wrote {out}: a checkpoint for tools/test.py {config}")
        return
    if is_exported(out) or out.suffix in ENDINGS:  # a folder of such a name would be taken for a file
        raise ValueError(f"--out is the folder to write, but {out.name} is the name of a file")
    reserve_folder(context, out, ("config.json", "model.safetensors"), force=force)
    from ._checkpoint import model_from_file
    from ._registry import split_name

    if arch:
        arch, tag = split_name(f"{arch}.{tag}" if tag else arch)
    options: Any = {"source": source, "channel_order": channel_order, "prefix": prefix, "entry": entry}
    model: Any = model_from_file(src, arch, tag=tag, **options)
    _write_directory(model, out, bool(tag), labels, {"img_size": img_size, "crop_pct": crop_pct})
    parameters = sum(p.numel() for p in model.parameters())
    classes = f"{model.num_classes} classes" if model.num_classes else "no classifier"
    typer.echo(f"Wrote {out}: {model.pretrained_cfg['architecture']}, {parameters:,} parameters, {classes}.")
    typer.echo(f'Load it with timm.create_model("local-dir:{out}", pretrained=True).')


def _convert_dense(src: Path, config: str, out: Path, channel_order: ChannelOrder | None, entry: str | None) -> None:
    """Write a checkpoint that the tools of MMDetection and MMSegmentation load."""
    import torch

    from .._files import replacing
    from ..configs import find_config
    from ._checkpoint import load_dense

    find_config(config)  # a wrong name is reported before a missing extra
    from ..mm.convert import dataset_meta
    from ..mm.loading import load_model

    model, cfg = load_dense(partial(load_model, channel_order=channel_order), config, src, entry)
    # What mmdet's and mmseg's inferencers label and colour their results by.
    content = {"state_dict": model.state_dict(), "meta": {"dataset_meta": dataset_meta(cfg)}}
    with replacing(out) as temporary:
        torch.save(content, temporary)


def _write_directory(model: Any, out: Path, published: bool, labels: Path | None, data_config: dict[str, Any]) -> None:
    """Write ``model.safetensors`` and ``config.json``; only published weights keep the tag and licence of their row."""
    from timm.models import save_for_hf

    from .._files import filling
    from ._checkpoint import forget_origin
    from ._labels import class_names

    cfg = model.pretrained_cfg
    if published and model.num_classes not in (0, cfg["num_classes"]):
        raise ValueError(
            f"{cfg['architecture']}.{cfg['tag']} has {cfg['num_classes']} classes, but this checkpoint has "
            f"{model.num_classes}; leave out the tag for weights of your own"
        )
    if not published:
        forget_origin(model)
    model_config = {"label_names": class_names(model, labels)} if labels else {}
    with filling(out) as stage:
        save_for_hf(model, stage, model_config=model_config, safe_serialization=True, data_config=data_config)
        # safetensors writes a file for the owner's eyes only; give it the permissions that any new file gets.
        (stage / "model.safetensors").chmod((stage / "config.json").stat().st_mode)

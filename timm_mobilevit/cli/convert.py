"""``timm-mobilevit convert``."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..export.formats import is_exported
from ._options import Entry, model_names

EXAMPLES = (
    "timm-mobilevit convert checkpoint_ema_best.pt --arch mobilevitv3_s --tag micron_in1k --out mobilevitv3_s",
    "timm-mobilevit convert output/train/model_best.pth.tar --arch mobilevitv3_xxs --img-size 64 "
    "--labels classes.txt --out digits",
    "timm-mobilevit convert distilled.pth --prefix student --out student",
    "timm-mobilevit convert my_bgr_training.pt --arch mobilevitv2_1_0 --channel-order bgr --out converted",
    "timm-mobilevit convert coco-ssd-mobilevitv2-1.0.pt --config ssdlite_mobilevitv2-1.0 --out ssdlite.pth",
)

# Endings of checkpoints: a folder of such a name would be taken for a file.
_FILE_ENDINGS = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".safetensors")


class Format(str, Enum):
    """Layouts that ``convert_state_dict`` takes; listed here because that module is slow to import."""

    auto = "auto"
    cvnets = "cvnets"
    transformers = "transformers"
    mmpretrain = "mmpretrain"
    timm = "timm"


class ChannelOrder(str, Enum):
    """Orders of the input channels of a file."""

    rgb = "rgb"
    bgr = "bgr"


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
    config: Annotated[
        str,
        typer.Option(
            help="Config of a detector or segmentor: converts an official detection or segmentation checkpoint, or one "
            "of a training, for MMDetection's or MMSegmentation's tools. A file, or a name that "
            "`timm-mobilevit config` lists. Needs the extra seg, det or mm.",
            show_default=False,
        ),
    ] = "",
    source: Annotated[
        Format,
        typer.Option(help="Format of the checkpoint: cvnets is also CoreNet's and MobileViTv3's; auto finds out."),
    ] = Format.auto,
    channel_order: Annotated[
        ChannelOrder | None,
        typer.Option(
            help="Order of the checkpoint's input channels, where it is not the one known for this format and "
            "architecture. What is written always takes RGB.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="What stands before the model's names, if the file holds several.", show_default=False),
    ] = None,
    entry: Entry = None,
    tag: Annotated[
        str,
        typer.Option(
            help="Published weights that the checkpoint holds: config.json gets their preprocessing, licence and "
            "origin. Without it, only the preprocessing of the architecture's default weights.",
            show_default=False,
        ),
    ] = "",
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the input in pixels, if not the published one.")
    ] = None,
    crop_pct: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Centre crop, if not the published one.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names: a text file with one per line, or JSON; go into config.json.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a directory that is not empty, over those two files.")
    ] = False,
) -> None:
    """Convert a checkpoint to safetensors and a config.json, or for MMDetection and MMSegmentation.

    The directory written is what timm.create_model("local-dir:DIR", pretrained=True) loads and what
    timm.models.push_to_hf_hub uploads.
    """
    from ._targets import reserve_file, reserve_folder

    order: Any = channel_order.value if channel_order else None
    if arch and config:
        raise typer.BadParameter("--arch is for a classifier or backbone, --config for a detector or segmentor")
    if tag and not arch:
        raise typer.BadParameter("--tag goes with --arch")
    if config:
        if out.suffix != ".pth":
            raise ValueError(f"with --config, --out is the .pth file to write, got {out}")
        reserve_file(context, out, force=force)
        from ._mm import write_mm_checkpoint

        write_mm_checkpoint(src, config, out, channel_order=order, entry=entry)
        typer.echo(f"Wrote {out}: a checkpoint for tools/test.py {config}")
        return
    if is_exported(out) or out.suffix in _FILE_ENDINGS:
        raise ValueError(f"--out is the folder to write, but {out.name} is the name of a file")
    reserve_folder(context, out, ("config.json", "model.safetensors"), force=force)
    from ._checkpoint import model_from_file
    from ._export import write_directory
    from ._registry import split_name

    if arch:
        arch, tag = split_name(f"{arch}.{tag}" if tag else arch)
    layout: Any = source.value
    model: Any = model_from_file(src, arch, tag=tag, source=layout, channel_order=order, prefix=prefix, entry=entry)
    arch = model.pretrained_cfg["architecture"]
    write_directory(model, out, published=bool(tag), labels=labels, img_size=img_size, crop_pct=crop_pct)
    parameters = sum(p.numel() for p in model.parameters())
    classes = f"{model.num_classes} classes" if model.num_classes else "no classifier"
    typer.echo(f"Wrote {out}: {arch}, {parameters:,} parameters, {classes}.")
    typer.echo(f'Load it with timm.create_model("local-dir:{out}", pretrained=True).')

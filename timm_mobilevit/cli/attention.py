"""``timm-mobilevit attention``."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._errors import print_error
from ._options import Checkpoint, CropPct, Entry, Images, ImgSize, Model, check_model_is_named

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

EXAMPLES = (
    "timm-mobilevit attention cat.jpg --model mobilevitv1_s --out attention",
    "timm-mobilevit attention photos --model mobilevitv3_s --phases --out attention",
    "timm-mobilevit attention scene.jpg --checkpoint digits --img-size 256 --out attention",
)


def attention(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder to write IMAGE-stage3.png, -stage4.png and -stage5.png to.")],
    model: Model = "",
    checkpoint: Checkpoint = None,
    entry: Entry = None,
    phases: Annotated[
        bool, typer.Option("--phases", help="Add a row for each pixel phase: attention never mixes them.")
    ] = False,
    img_size: ImgSize = None,
    crop_pct: CropPct = None,
) -> None:
    """Draw what each transformer stage attends to: red more than even attention, blue less.

    For v1 and v3-S, -XS and -XXS a pixel shows how much attention it gets; for v2 and v3-1.0, -0.75 and -0.5 its
    context score. Images that cannot be read are reported and left out; the exit code is then 1.
    """
    check_model_is_named(model, checkpoint)
    from timm.data import create_transform, resolve_input_data_config

    from .._files import check_folder, replacing
    from .._images import UnreadableImageError, find_images, image_mode, read_image
    from ..attention_maps import attention_maps, draw_stage
    from ._checkpoint import load_model
    from ._images import NOT_FINITE

    files = find_images(images)
    stems = [file.stem for file in files]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise ValueError(f"several images are called {twice[0]}; their pictures would overwrite each other")
    check_folder(out, [f"{stem}-stage{stage}.png" for stem in stems for stage in (3, 4, 5)])
    network = load_model(model, checkpoint, True, entry).eval()
    config = resolve_input_data_config(network, {"img_size": img_size, "crop_pct": crop_pct})
    transform: Any = create_transform(**config)
    mode = image_mode(config["input_size"][0])
    failed = False
    for file in files:
        try:
            image = read_image(file, mode, transform)
        except UnreadableImageError as error:
            print_error(f"{file}: {error}")
            failed = True
            continue
        maps = attention_maps(network, image[None])
        if not all(m.scores.isfinite().all() for m in maps):
            print_error(f"{file}: {NOT_FINITE}")
            failed = True
            continue
        seen = _as_image(image, config["mean"], config["std"])
        for stage, layers in itertools.groupby(maps, key=lambda m: m.stage):
            target = out / f"{file.stem}-stage{stage}.png"
            with replacing(target) as temporary:
                draw_stage(seen, list(layers), phases=phases).save(temporary, optimize=True)
            typer.echo(target)
    if failed:
        raise typer.Exit(1)


def _as_image(x: "Tensor", mean: tuple[float, ...], std: tuple[float, ...]) -> "Image.Image":
    """Return the image that the model sees, from its input [C, H, W]."""
    import torch
    from torchvision.transforms.functional import to_pil_image  # type: ignore[import-untyped]

    pixels = x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return to_pil_image(pixels.clamp(0, 1))  # type: ignore[no-any-return]

"""Draws what a detector or segmentor finds, with MMDetection's and MMSegmentation's own inference and visualizers.

``python -m benchmarks.mm_predict CONFIG CHECKPOINT IMAGE... --out FILE``. The images become one row of the picture.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from mmengine.config import Config
from PIL import Image

from timm_mobilevit._files import replacing
from timm_mobilevit._images import UnreadableImageError, read_image


def draw(config: Config, checkpoint: Path, images: list[np.ndarray], min_score: float = 0.3) -> list[np.ndarray]:
    """Draw detections (``default_scope`` "mmdet") or masks ("mmseg") on images.

    Args:
        config: Config that the checkpoint was trained with.
        checkpoint: File that tools/train.py wrote.
        images: RGB images [height, width, 3], 8-bit.
        min_score: Smallest score of a detection that is drawn, in [0, 1].

    Returns:
        RGB images of the same sizes.

    Raises:
        ValueError: The config is for neither.
    """
    drawers = {"mmdet": _draw_detections, "mmseg": _draw_masks}
    scope = config.get("default_scope")
    if scope not in drawers:
        raise ValueError(f"expected a config whose default_scope is 'mmdet' or 'mmseg', got {scope!r}")
    config.model.backbone.pretrained = False  # the checkpoint has all weights
    return drawers[scope](config, str(checkpoint), images, min_score)


def _draw_detections(config: Config, checkpoint: str, images: list[np.ndarray], min_score: float) -> list[np.ndarray]:
    from mmdet.apis import inference_detector, init_detector
    from mmdet.registry import VISUALIZERS

    model = init_detector(config, checkpoint, device="cpu")
    visualizer = VISUALIZERS.build({"type": "DetLocalVisualizer", "name": "detections", "line_width": 2})
    visualizer.dataset_meta = model.dataset_meta
    drawn = []
    for image in images:
        result = inference_detector(model, np.ascontiguousarray(image[..., ::-1]))  # takes BGR
        drawn.append(_add(visualizer, image, result, pred_score_thr=min_score))
    return drawn


def _draw_masks(config: Config, checkpoint: str, images: list[np.ndarray], _: float) -> list[np.ndarray]:
    from mmseg.apis import inference_model, init_model
    from mmseg.registry import VISUALIZERS

    model = init_model(config, checkpoint, device="cpu")
    visualizer = VISUALIZERS.build({"type": "SegLocalVisualizer", "name": "masks", "alpha": 0.7})
    visualizer.dataset_meta = model.dataset_meta
    drawn = []
    for image in images:
        result = inference_model(model, np.ascontiguousarray(image[..., ::-1]))  # takes BGR
        drawn.append(_add(visualizer, image, result))
    return drawn


def _add(visualizer: Any, image: np.ndarray, result: Any, **options: Any) -> np.ndarray:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "drawn.png"  # a file is asked for: the visualizers keep or store the picture otherwise
        visualizer.add_datasample("image", image, result, draw_gt=False, out_file=str(file), **options)
        return np.array(Image.open(file).convert("RGB"))


def main(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(dir_okay=False, help="PNG file to write.")],
    below: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Picture to put the new row below; can be OUT.")
    ] = None,
    height: Annotated[int, typer.Option(min=32, help="Pixels that the images are scaled to before.")] = 256,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of a detection that is drawn.")] = 0.3,
) -> None:
    """Draw detections or masks on images."""
    scaled = []
    for path in images:
        try:
            image = read_image(path, "RGB", lambda image: image)
        except UnreadableImageError as error:
            raise typer.BadParameter(f"{path}: {error}") from error
        size = (round(image.width * height / image.height), height)
        scaled.append(np.array(image.resize(size, Image.Resampling.BICUBIC)))
    try:
        row = np.concatenate(draw(Config.fromfile(config), checkpoint, scaled, min_score), axis=1)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    rows = [Image.fromarray(row)] if below is None else [Image.open(below).convert("RGB"), Image.fromarray(row)]
    picture = Image.new("RGB", (max(part.width for part in rows), sum(part.height for part in rows)), "white")
    top = 0
    for part in rows:
        picture.paste(part, (0, top))
        top += part.height
    with replacing(out) as scratch:
        picture.quantize(256).save(scratch, "PNG", optimize=True)  # a third of the size
    typer.echo(f"{out}: {picture.width}×{picture.height} pixels")


if __name__ == "__main__":
    typer.run(main)

"""What detectors and segmentors find in images: drawn with the frameworks' own visualizers, and as JSON."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer
from mmdet.visualization.palette import get_palette
from mmengine.dataset import Compose
from mmseg.visualization import SegLocalVisualizer
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as rle  # type: ignore[import-untyped]

from .._files import replacing
from ..mm.convert import dataset_meta
from ..mm.loading import load_model
from ._images import usable_device


def predict_dense(
    paths: Sequence[Path],
    images: Sequence[Path],
    config: str,
    checkpoint: Path,
    out: Path,
    *,
    min_score: float = 0.3,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Detect or segment images, with the steps that the config tests with, and draw the results.

    Args:
        paths: Files and folders that the user named; pictures have the place in ``out`` that images have in a folder.
        images: Files to read.
        config: A file, or the name of an installed config.
        checkpoint: Weights of its model, as ``timm_mobilevit.mm.loading.load_model`` takes them.
        out: Folder to write pictures to.
        min_score: Smallest score of a detection, in [0, 1].
        device: Where the model runs, as torch names devices.

    Yields:
        One dictionary per image, in order: ``image``, and ``error`` if it cannot be read, or else ``picture`` (its name
        in ``out``), ``width``, ``height``, and ``detections`` or ``segments``. A detection has ``box``, the corners
        (x1, y1, x2, y2) in pixels of the image; a segment, and a detection of a model that gives them, has ``mask``,
        run-length encoded as in COCO.

    Raises:
        FileNotFoundError: If the config or checkpoint is missing.
        ValueError: If they do not belong together, or the device cannot be used.
    """
    model, cfg = load_model(config, checkpoint)
    model = model.to(usable_device(device))
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if not step.type.endswith("LoadAnnotations")]
    pipeline = Compose(steps)
    meta = dataset_meta(cfg)
    colours = meta.get("palette") or get_palette("random", len(meta["classes"]))
    visualizers = {"detections": DetLocalVisualizer(), "segments": SegLocalVisualizer(alpha=0.6)}
    for visualizer in visualizers.values():
        visualizer.dataset_meta = {"classes": meta["classes"], "palette": colours}
    for path, name in zip(images, _picture_names(paths, images), strict=True):
        pixels = _read(path)
        if isinstance(pixels, str):
            yield {"image": str(path), "error": pixels}
            continue
        packed = pipeline({"img_path": str(path), "img_id": 0})
        with torch.inference_mode():
            (sample,) = model.test_step({key: [value] for key, value in packed.items()})
        sample = sample.cpu()
        if "pred_instances" in sample:
            sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= min_score]
            kind, options, found = "detections", {"pred_score_thr": min_score}, _detections(sample, meta["classes"])
        else:
            kind, options, found = "segments", {}, _segments(sample, meta["classes"])
        with replacing(out / name) as temporary:
            visualizers[kind].add_datasample(name, pixels, sample, draw_gt=False, out_file=str(temporary), **options)
        height, width = pixels.shape[:2]
        yield {"image": str(path), "picture": name, "width": width, "height": height, kind: found}


def text_lines(entry: dict[str, Any]) -> Iterator[str]:
    """One entry of :func:`predict_dense` for a terminal: detections with score and box, segments with their share."""
    yield f"{entry['image']} → {entry['picture']}"
    for found in entry.get("detections", ()):
        corners = ", ".join(f"{corner:.0f}" for corner in found["box"])
        yield f"  {100 * found['score']:6.2f} %  {found['label']}  [{corners}]"
    for found in entry.get("segments", ()):
        yield f"  {100 * found['pixels'] / (entry['width'] * entry['height']):6.2f} % of the image  {found['label']}"


def _read(path: Path) -> NDArray[Any] | str:
    """The image as it is shown, RGB [H, W, 3] of 8 bits, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # on broken files decoders raise nearly anything
        return f"not a readable image: {error}"


def _picture_names(paths: Iterable[Path], images: Iterable[Path]) -> list[str]:
    """A PNG per image, named as the image is in its folder, each once."""
    folders = [path for path in paths if path.is_dir()]
    names: dict[str, None] = {}
    for image in images:
        folder = next((folder for folder in folders if folder in image.parents), image.parent)
        stem = image.relative_to(folder).with_suffix("").as_posix()
        name, number = f"{stem}.png", 1
        while name in names:
            number += 1
            name = f"{stem}_{number}.png"
        names[name] = None
    return list(names)


def _detections(sample: Any, classes: Sequence[str]) -> list[dict[str, Any]]:
    found = sample.pred_instances
    entries = [
        {"label": classes[index], "index": index, "score": score, "box": box}
        for index, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)
    ]
    if "masks" in found:
        for entry, mask in zip(entries, found.masks, strict=True):
            entry["mask"] = _run_lengths(mask)
    return entries


def _segments(sample: Any, classes: Sequence[str]) -> list[dict[str, Any]]:
    indices = sample.pred_sem_seg.data[0]  # [H, W]
    return [
        {
            "label": classes[index],
            "index": index,
            "pixels": int((indices == index).sum()),
            "mask": _run_lengths(indices == index),
        }
        for index in indices.unique().tolist()
    ]


def _run_lengths(mask: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = rle.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}

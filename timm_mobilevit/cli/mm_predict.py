"""Predictions of detectors and segmentors: drawn with the frameworks' own visualizers, and as JSON."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from numpy.typing import NDArray
from pycocotools import mask as rle  # type: ignore[import-untyped]
from torch.utils._pytree import tree_leaves

from .._files import check_folder, replacing
from .._images import UnreadableImageError, read_image
from ..mm._evaluated_data import evaluated_steps
from ..mm._type_names import type_name
from ..mm.convert import dataset_meta
from ..mm.loading import load_model
from ._checkpoint import load_dense
from ._images import NOT_FINITE, usable_device


def predict_dense(
    paths: Sequence[Path],
    images: Sequence[Path],
    config: str,
    checkpoint: Path,
    out: Path,
    *,
    entry: str | None = None,
    min_score: float = 0.3,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Detect or segment images, with the steps that the config tests with, and draw the results.

    Args:
        paths: Files and folders that the user named; pictures have the place in ``out`` that images have in a folder.
        images: Files to read.
        config: A file, or the name of an installed config.
        checkpoint: Weights of its model.
        out: Folder to write pictures to.
        entry: The entry of the checkpoint that holds the weights; None for the one that its trainer evaluates.
        min_score: Smallest score of a detection, in [0, 1].
        device: Where the model runs, as torch names devices.

    Yields:
        One dictionary per image, in order: ``image``, and ``error`` if it cannot be read or the outputs are not finite,
        or else ``picture`` (its name in ``out``), ``width``, ``height``, and ``detections`` or ``segments``. A
        detection has ``box``, the corners (x1, y1, x2, y2) in pixels of the image; a segment, and a detection of a
        model that gives them, has ``mask``, run-length encoded as in COCO.

    Raises:
        FileNotFoundError: If the config or checkpoint is missing.
        ValueError: If they do not belong together, the device cannot be used, or ``out`` cannot hold the pictures.
        OSError: If there is no right to write there.
    """
    names = _picture_names(paths, images)
    check_folder(out, names)
    model, cfg = load_dense(load_model, config, checkpoint, entry)
    model = model.to(usable_device(device))
    finite = _watch(model)
    prepare = _preparation(evaluated_steps(cfg))
    meta = dataset_meta(cfg)
    if not meta.get("classes"):
        raise ValueError(
            f"the data set that {config} tests on names no classes: set metainfo=dict(classes=(...)) in it"
        )
    count = _class_count(model)
    if count not in (None, len(meta["classes"])):
        raise ValueError(
            f"the model tells {count} classes apart, but the data set that {config} tests on names "
            f"{len(meta['classes'])}: {', '.join(meta['classes'][:5])}; name all of the model's in "
            "metainfo=dict(classes=(...)), also a segmentor's background"
        )
    visualizer = None
    for path, name in zip(images, names, strict=True):
        try:
            pixels = read_image(path, "RGB", np.array)
        except UnreadableImageError as error:
            yield {"image": str(path), "error": str(error)}
            continue
        packed = prepare(path, pixels)
        with torch.inference_mode():
            (sample,) = model.test_step({key: [value] for key, value in packed.items()})
        sample = sample.cpu()
        if "seg_logits" in sample:
            finite.append(bool(sample.seg_logits.data.isfinite().all()))
        is_finite = all(finite)
        finite.clear()
        if not is_finite:
            yield {"image": str(path), "error": NOT_FINITE}
            continue
        if "pred_instances" in sample:
            sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= min_score]
            kind, options, found = "detections", {"pred_score_thr": min_score}, _detections(sample, meta["classes"])
        else:
            kind, options, found = "segments", {}, _segments(sample, meta["classes"])
        visualizer = visualizer or _visualizer(kind, meta)
        with replacing(out / name) as temporary:
            visualizer.add_datasample(name, pixels, sample, draw_gt=False, out_file=str(temporary), **options)
        height, width = pixels.shape[:2]
        yield {"image": str(path), "picture": name, "width": width, "height": height, kind: found}


def _preparation(steps: list[Any]) -> Callable[[Path, NDArray[Any]], dict[str, Any]]:
    """Return a function from an image, its file and its pixels, to the model's input."""
    loader = steps[0]
    in_colour = type_name(loader.type) == "LoadImageFromFile" and loader.get("color_type", "color") == "color"
    pipeline = Compose(steps[1:] if in_colour else steps)

    def prepare(path: Path, pixels: NDArray[Any]) -> dict[str, Any]:
        image = {"img_path": str(path), "img_id": 0}
        if not in_colour:  # other channels are read as the config says
            return pipeline(image)  # type: ignore[no-any-return]
        bgr = np.ascontiguousarray(pixels[..., ::-1])  # as mmcv reads, but read as for all other models
        if loader.get("to_float32"):
            bgr = bgr.astype(np.float32)
        return pipeline({**image, "img": bgr, "img_shape": bgr.shape[:2], "ori_shape": bgr.shape[:2]})  # type: ignore[no-any-return]

    return prepare


def _class_count(model: Any) -> int | None:
    """Return how many classes the head of a detector or segmentor tells apart; None if it does not say."""
    owner = getattr(model, "roi_head", model)
    head = getattr(owner, "decode_head", None) or getattr(owner, "bbox_head", None)
    if isinstance(head, torch.nn.ModuleList):  # of a cascade
        head = head[-1]
    if hasattr(owner, "decode_head") and getattr(head, "out_channels", None) == 1:
        return 2  # whatever num_classes says
    return getattr(head, "num_classes", None)


def _visualizer(kind: str, meta: dict[str, Any]) -> Any:
    """Return the visualizer of mmdet or mmseg, whichever the model comes from."""
    visualizer: Any
    if kind == "detections":
        from mmdet.visualization import DetLocalVisualizer

        visualizer = DetLocalVisualizer()
    else:
        from mmseg.visualization import SegLocalVisualizer

        visualizer = SegLocalVisualizer(alpha=0.6)
    names = meta["classes"]
    colours = meta.get("palette") or np.random.RandomState(42).randint(0, 256, (len(names), 3)).tolist()  # as mmdet's
    visualizer.dataset_meta = {"classes": names, "palette": [tuple(colour) for colour in colours]}
    return visualizer


def _watch(model: Any) -> list[bool]:
    """Return a list that fills with whether the outputs of the parts of a model are finite.

    The detections do not show it: a score that is NaN is below every threshold.
    """
    finite: list[bool] = []

    def look(module: Any, args: Any, output: Any) -> None:
        finite.extend(bool(x.isfinite().all()) for x in tree_leaves(output) if torch.is_tensor(x))

    for part in model.children():
        part.register_forward_hook(look)
    return finite


def text_lines(entry: dict[str, Any]) -> Iterator[str]:
    """Write an entry of :func:`predict_dense` as text: detections with score and box, segments with their share."""
    yield f"{entry['image']} → {entry['picture']}"
    for found in entry.get("detections", ()):
        corners = ", ".join(f"{corner:.0f}" for corner in found["box"])
        yield f"  {100 * found['score']:6.2f} %  {found['label']}  [{corners}]"
    for found in entry.get("segments", ()):
        yield f"  {100 * found['pixels'] / (entry['width'] * entry['height']):6.2f} % of the image  {found['label']}"


def _picture_names(paths: Iterable[Path], images: Iterable[Path]) -> list[str]:
    """Return a PNG per image, named as the image is in its folder, each once."""
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
        {"label": _label(classes, index), "index": index, "score": score, "box": box}
        for index, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)
    ]
    if "masks" in found:
        for entry, mask in zip(entries, found.masks, strict=True):
            entry["mask"] = _run_lengths(mask)
    return entries


def _segments(sample: Any, classes: Sequence[str]) -> list[dict[str, Any]]:
    indices = sample.pred_sem_seg.data[0].long()  # [H, W]; mmseg's binary segmentors give them as fractions
    return [
        {
            "label": _label(classes, index),
            "index": index,
            "pixels": int((indices == index).sum()),
            "mask": _run_lengths(indices == index),
        }
        for index in indices.unique().tolist()
    ]


def _label(classes: Sequence[str], index: int) -> str:
    if index >= len(classes):
        raise ValueError(
            f"the model finds class {index}, but the data set that its config tests on names {len(classes)}: "
            f"{', '.join(classes[:5])}; name all of them in metainfo=dict(classes=(...)), also a segmentor's background"
        )
    return classes[index]


def _run_lengths(mask: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = rle.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}

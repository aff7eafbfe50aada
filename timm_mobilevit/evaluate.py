"""Accuracy of a classifier on a folder of images, with timm's loader and metrics."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_input_data_config
from timm.data.dataset import ImageDataset
from timm.task import ClassificationEvaluator
from torch import nn

from ._files import filling
from ._images import MODES, UnreadableImageError, evenly, read_image
from .convert.layouts import ChannelOrder
from .inference.optimize import optimize_for_inference
from .weights.directory import names_by_class

__all__ = ["Accuracy", "evaluate", "write_results"]

_UNREADABLE = -1  # instead of the number of a class


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier is right.

    Attributes:
        channel_order: Order in which the model got the channels of the images.
        images: How many images were classified.
        top1: Percentage of images whose class the model finds the most likely.
        top5: Percentage of images whose class is among the five most likely.
        loss: Mean cross-entropy, in nats.
    """

    channel_order: ChannelOrder
    images: int
    top1: float
    top5: float
    loss: float

    @property
    def standard_error(self) -> float:
        """Return the standard error of ``top1`` in percentage points, from the number of images.

        Example:
            >>> Accuracy("rgb", images=2500, top1=50.0, top5=80.0, loss=2.0).standard_error
            1.0
        """
        return math.sqrt(self.top1 * (100 - self.top1) / self.images)


def evaluate(
    model: nn.Module,
    data: str | Path,
    *,
    split: str = "validation",
    channel_orders: Sequence[ChannelOrder] = ("rgb",),
    img_size: int | None = None,
    crop_pct: float | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Accuracy]:
    """Measure top-1 and top-5 accuracy with the preprocessing that belongs to the model.

    The data is read once for all channel orders. Classes are the folders' names: in the order of the model's
    ``label_names`` if these are the same names; in natural order (2 before 10), as for timm's scripts, if none of them
    is. For the synsets of ImageNet that is the order of its classes.

    Args:
        model: A timm model with a classifier. It is moved to ``device`` and set to evaluation mode.
        data: Folder with one folder of images per class, or one that holds such a folder for each split.
        split: Which split to use, by timm's names: ``"validation"`` finds ``val`` too.
        channel_orders: Orders in which the model gets the channels. Models of this package take RGB; ``"bgr"``
            reverses the channels after the preprocessing, which has the effect of reversing those of the stem.
        img_size: Side of the input in pixels, if not the model's own.
        crop_pct: Side of the centre crop over the shorter side of the resized image, if not the model's own.
        limit: Number of images to classify, evenly spaced in the folder; all of them if None.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this one.
        device: Where the model runs.
        dtype: ``torch.bfloat16`` to measure ``optimize_for_inference(model, dtype=torch.bfloat16)``.
        on_batch: Called after each batch with the number of images done and of all.

    Returns:
        One accuracy per channel order, in order.

    Raises:
        FileNotFoundError: If there is no such folder.
        UnreadableImageError: If an image cannot be read. The message names the file.
        ValueError: If the classes of the folder are not as many as the model's, only some of them have the names of the
            model's, an image is not in the folder of a class, the model has no classifier or input channels other than
            one or three, a number is out of its range, or an output is not finite. The message then names the image.

    Example:
        >>> import tempfile, timm, timm_mobilevit
        >>> folder = Path(tempfile.mkdtemp())
        >>> for i, name in enumerate(("cat", "dog")):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (64, 64), (200 * i, 0, 0)).save(folder / name / "0.png")
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=2)
        >>> (accuracy,) = evaluate(model, folder, img_size=64, workers=0)
        >>> accuracy.images, accuracy.top5
        (2, 100.0)
    """
    config = resolve_input_data_config(model, {"img_size": img_size, "crop_pct": crop_pct})
    channels = config["input_size"][0]
    if channels not in MODES or (channels == 1 and "bgr" in channel_orders):
        raise ValueError(f"{', '.join(channel_orders).upper()} images do not fit a model of {channels} input channels")
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    dataset = _open_folder(Path(data), split, int(model.num_classes), MODES[channels], names)  # type: ignore[arg-type]
    if limit is not None:
        if limit < 1:
            raise ValueError(f"the number of images must be at least 1, got {limit}")
        dataset.reader.samples = evenly(dataset.reader.samples, limit)
    device = torch.device(device)
    loader = create_loader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        device=device,
        pin_memory=device.type == "cuda",
        persistent_workers=False,  # there is no second pass
        **config,
    )
    model = model.eval().to(device)
    if dtype is not None:
        model = optimize_for_inference(model, dtype=dtype)
    evaluators = {order: ClassificationEvaluator(device) for order in channel_orders}
    done = 0
    with torch.inference_mode():
        for images, targets in loader:
            if (targets == _UNREADABLE).any():
                break
            for order, evaluator in evaluators.items():
                logits = model(images.flip(1) if order == "bgr" else images)
                if wrong := (~logits.isfinite().all(1)).nonzero().flatten().tolist():
                    file = dataset.filename(done + wrong[0], absolute=True)
                    raise ValueError(f"the model's outputs for {file} are not finite; no accuracy can be told")
                evaluator.update(logits, targets)
            done += len(images)
            on_batch(done, len(dataset))
    if done < len(dataset):
        _raise_unreadable(dataset, done)
    accuracies = [Accuracy(order, images=done, **evaluator.compute()) for order, evaluator in evaluators.items()]
    if not all(math.isfinite(accuracy.loss) for accuracy in accuracies):
        raise ValueError("the model's outputs are so far apart that their loss is not finite; no accuracy can be told")
    return accuracies


def better_order(accuracies: Sequence[Accuracy]) -> ChannelOrder | None:
    """Name the channel order with the highest top-1, or None where the images are too few to tell.

    It must be ahead by more than two standard errors of the difference.

    Args:
        accuracies: Two of the same model on the same images.

    Example:
        >>> rgb, bgr = Accuracy("rgb", 5000, 78.3, 94.1, 0.9), Accuracy("bgr", 5000, 75.0, 92.0, 1.1)
        >>> better_order([rgb, bgr])
        'rgb'
    """
    second, first = sorted(accuracies, key=lambda accuracy: accuracy.top1)
    clear = first.top1 - second.top1 > 2 * math.hypot(first.standard_error, second.standard_error)
    return first.channel_order if clear else None


def write_results(out: Path, name: str, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``NAME.json`` and ``NAME.csv``, both completely or none.

    Args:
        out: Folder to write to. Made where needed.
        name: Name of the files, without suffix.
        document: What the JSON file says.
        rows: The lines of the CSV file; the first names the columns.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_results(folder, "results", {"top1": 78.3}, [{"top1": 78.3}])
        >>> (folder / "results.csv").read_text().split()
        ['top1', '78.3']
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with filling(out) as stage:
        for suffix, text in (
            (".json", json.dumps(document, indent=2, allow_nan=False) + "\n"),
            (".csv", table.getvalue()),
        ):
            (stage / f"{name}{suffix}").write_text(text, encoding="utf-8")


class _WholeFolder(ImageDataset):  # type: ignore[misc]
    """An image folder that reports unreadable images, which timm's own replaces by the next."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        # Not an exception: one raised in a worker delays the end of the others by five seconds each.
        try:
            return self.read(index)
        except UnreadableImageError:
            return self.transform(Image.new(self.input_img_mode, (1, 1))), _UNREADABLE

    def read(self, index: int) -> tuple[Any, int]:
        """Return the transformed image and the number of its class.

        Raises:
            UnreadableImageError: If it cannot be read.
        """
        path, target = self.reader.samples[index]
        try:
            return read_image(path, self.input_img_mode, self.transform), target
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{path}: {error}") from error


def _raise_unreadable(dataset: _WholeFolder, start: int) -> NoReturn:
    """Raise an error that names the first image from ``start`` on that cannot be read."""
    for index in range(start, len(dataset)):
        dataset.read(index)
    raise UnreadableImageError(f"an image in {dataset.reader.root} could not be read, but can be now; try again")


def _open_folder(data: Path, split: str, num_classes: int, mode: str, names: Any = None) -> _WholeFolder:
    if num_classes < 1:
        raise ValueError("the model has no classifier; expected one with num_classes > 0")
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {data}; expected one that holds a folder of images per class")
    found = create_dataset("", root=str(data), split=split)  # timm finds the folder of the split
    root, classes = Path(found.reader.root), len(found.reader.class_to_idx)
    # timm makes a class of the innermost folder, wherever it is: in another split, below a class, in a hidden folder.
    if stray := next((path for path, _ in found.reader.samples if Path(path).parent.parent != root), ""):
        raise ValueError(
            f"{stray} is not in the folder of a class: expected {root}/CLASS/IMAGE, or {data} with the folder of a "
            f"split that is there, got {split!r}"
        )
    if classes != num_classes:
        raise ValueError(
            f"{found.reader.root} has {classes} classes with images, but the model has {num_classes}; "
            "expected one folder of images for each class"
        )
    own, folders = names_by_class(names, classes), set(found.reader.class_to_idx)
    if {str(name).casefold() for name in own} & {name.casefold() for name in folders}:  # else names of another kind
        if unknown := sorted(folders.difference(own)):
            missing = ", ".join(str(name) for name in own if name not in folders)
            raise ValueError(
                f"the model has no classes {', '.join(unknown)}, which are folders in {root}, but {missing}: rename "
                "the folders, or the classes in the model's configuration, so that their order is known"
            )
        order = {name: index for index, name in enumerate(own)}
        found = create_dataset("", root=str(data), split=split, class_map=order)
    return _WholeFolder(found.reader.root, reader=found.reader, input_img_mode=mode)

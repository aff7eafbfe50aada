"""Finding, reading and classifying images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import create_transform, get_img_extensions, is_img_extension, resolve_input_data_config
from timm.utils.misc import natural_key
from torch import Tensor, nn


@dataclass(frozen=True)
class Guess:
    """One of the classes that a model finds most likely.

    Attributes:
        index: Number of the class.
        label: Name of the class.
        probability: Softmax of the logits, in [0, 1].
    """

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What became of one image.

    Attributes:
        image: Path of the image.
        top: The most likely classes, best first; empty if the image could not be read.
        error: Why the image could not be read, or None.
    """

    image: str
    top: Sequence[Guess] = ()
    error: str | None = None


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Replace folders by the images in them, at any depth, in natural order.

    Hidden files are left out, and so are extensions that timm does not count as images; single files are taken as they
    are.

    Raises:
        ValueError: If a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        found = [p for p in path.rglob("*") if is_img_extension(p.suffix) and p.is_file() and p.name[0] != "."]
        if not found:
            raise ValueError(f"no images in {path}; expected files that end in {', '.join(get_img_extensions())}")
        images += sorted(found, key=lambda p: natural_key(str(p)))
    return images


def classify(
    model: nn.Module,
    images: Sequence[Path],
    names: Sequence[str],
    *,
    topk: int = 5,
    batch_size: int = 16,
    device: str = "cpu",
    data_args: dict[str, Any] | None = None,
) -> Iterator[Prediction]:
    """Classify images with the preprocessing that belongs to the model.

    Args:
        model: A timm model for images of one or three channels.
        images: Files to read.
        names: Name of each class.
        topk: How many classes to tell at most.
        batch_size: How many images go through the model at once.
        device: Where the model runs, as torch names devices.
        data_args: What to change in the preprocessing, as ``timm.data.resolve_input_data_config`` takes it.

    Yields:
        One prediction per image, in order. An image that cannot be read does not stop the others.

    Raises:
        ValueError: If the device cannot be used, or the model has another number of input channels.
    """
    modes = {1: "L", 3: "RGB"}
    config = resolve_input_data_config(model, data_args)
    channels = config["input_size"][0]
    if channels not in modes:
        raise ValueError(f"images have one channel or three, but this model takes {channels}")
    transform = create_transform(**config)
    model = model.eval().to(usable_device(device))
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        loaded = [load_image(path, modes[channels], transform) for path in batch]
        tensors = [item for item in loaded if isinstance(item, Tensor)]
        guesses = iter(_top(model, torch.stack(tensors).to(device), names, topk)) if tensors else iter(())
        for path, item in zip(batch, loaded, strict=True):
            if isinstance(item, Tensor):
                yield Prediction(str(path), top=next(guesses))
            else:
                yield Prediction(str(path), error=item)


def usable_device(device: str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: If it cannot be used here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: built without CUDA
        raise ValueError(f"device {device!r} cannot be used here: {error}") from error


def load_image(path: Path, mode: str, transform: Any) -> Tensor | str:
    """The image as the model takes it, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # as every viewer shows it
            tensor: Tensor = transform(upright.convert(mode))
            return tensor
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # on broken files decoders raise nearly anything, from SyntaxError to struct.error
        return f"not a readable image: {error}"


@torch.inference_mode()
def _top(model: nn.Module, x: Tensor, names: Sequence[str], topk: int) -> list[tuple[Guess, ...]]:
    """The most likely classes of each image of a batch [B, C, H, W]."""
    probabilities, indices = model(x).float().softmax(-1).topk(min(topk, len(names)))
    return [
        tuple(Guess(i, names[i], p) for i, p in zip(row_indices, row, strict=True))
        for row_indices, row in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]

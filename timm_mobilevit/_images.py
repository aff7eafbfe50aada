"""The one reader of image files: upright, with eight bits per channel, in the mode that the model takes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import get_img_extensions, is_img_extension
from timm.utils.misc import natural_key

from ._folders import walk_files

T = TypeVar("T")
Item = TypeVar("Item")

MODES = {1: "L", 3: "RGB"}  # mode of PIL for each number of input channels that a model for images has

_KNOWN_RANGES = {"PNG": ("I", "I;16"), "PPM": ("I",), "JPEG2000": ("I;16",), "TIFF": ("I;16", "I;16B")}


class UnreadableImageError(ValueError):
    """An image cannot be read; the message says why."""


def read_image(path: str | Path, mode: str, transform: Callable[[Image.Image], T]) -> T:
    """Read an image and transform it.

    The image is turned as its EXIF data say. Grey values of 16 bits are scaled to eight. Transparency is dropped,
    colour profiles are not applied, and the first of several frames or pages is taken.

    Args:
        path: File to read.
        mode: "L" or "RGB".
        transform: What to do with the image.

    Returns:
        What ``transform`` returns.

    Raises:
        UnreadableImageError: If there is no such file, it holds no whole image, or the range of its values is not
            known; or if ``transform`` fails.
    """
    try:
        # From an open file: by its name, PIL maps some TIFF files and confuses width and height of turned ones.
        with open(path, "rb") as file, Image.open(file) as image:
            image.load()  # turns a TIFF file, and takes its orientation out
            with suppress(Exception):  # PIL raises nearly anything on broken EXIF data
                ImageOps.exif_transpose(image, in_place=True)
            image.info.pop("transparency", None)  # PIL warns of some kinds
            return transform(_with_eight_bits(image).convert(mode))
    except FileNotFoundError as error:
        raise UnreadableImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not a readable image: PIL does not know its format") from error
    except Exception as error:  # on broken files decoders raise nearly anything, from SyntaxError to struct.error
        raise UnreadableImageError(f"not a readable image: {error}") from error


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Replace folders by the images in them, at any depth, in natural order.

    Hidden files and folders, and files whose extension timm does not list as images, are left out. A folder that
    several links lead to is read once. Single files are always kept.

    Raises:
        ValueError: If a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        files = walk_files(path, hidden=False)
        found = [file for file in files if is_img_extension(file.suffix.lower()) and file.is_file()]
        if not found:
            raise ValueError(f"no images in {path}; expected files that end in {', '.join(get_img_extensions())}")
        images += sorted(found, key=lambda file: natural_key(str(file)))
    return images


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Choose some of the items, evenly spaced: images are sorted by class, so the first ones would miss most classes.

    Example:
        >>> evenly("abcdefg", 3), evenly("ab", 3)
        (['a', 'd', 'g'], ['a', 'b'])
    """
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items)), dtype=int)]


def image_mode(channels: int) -> str:
    """Return PIL's mode for the images of a model with this number of input channels.

    Raises:
        ValueError: If it takes no images.
    """
    if channels not in MODES:
        raise ValueError(f"images have one channel or three, but this model takes {channels}")
    return MODES[channels]


def _with_eight_bits(image: Image.Image) -> Image.Image:
    """Return the image, scaled if PIL's own conversion would clip its values at 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    if image.mode not in _KNOWN_RANGES.get(str(image.format), ()):
        kind = "floating-point numbers" if image.mode == "F" else "integers of more than eight bits"
        raise ValueError(
            f"its pixels are {kind} of unknown range (mode {image.mode} in a {image.format} file); expected eight bits "
            "per channel, or 16 bits of grey in PNG or TIFF: scale it and save it as PNG"
        )
    values, largest = np.asarray(image), 65535
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        largest = 2 ** tags[258][0] - 1  # BitsPerSample: 12 are not scaled by PIL
        if tags[262] == 0:  # PhotometricInterpretation: white is zero, which PIL heeds with eight bits only
            values = largest - values
    return Image.fromarray(np.rint(values / (largest / 255)).astype(np.uint8))

"""Augmentations of the reference recipes that MMDetection and MMSegmentation lack."""

from ._installed import check_installed

check_installed("augmentations")

from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageFilter
from torchvision.transforms import v2


@TRANSFORMS.register_module()
class RandomBrightnessFactor(BaseTransform):  # type: ignore[misc]
    """Multiply an image by a random factor. ``PhotoMetricDistortion`` adds a random value instead.

    Args:
        factors: Range of the factor.
        prob: How often, in [0, 1].
    """

    def __init__(self, factors: tuple[float, float] = (0.875, 1.125), prob: float = 0.5) -> None:
        self.factors = factors
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img``, keeping its data type."""
        factor = self._random_factor()
        if factor is not None:
            image = results["img"]
            largest = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 255
            results["img"] = np.clip(image.astype(np.float32) * factor, 0, largest).astype(image.dtype)
        return results

    @cache_randomness  # type: ignore[untyped-decorator]
    def _random_factor(self) -> float | None:
        return float(np.random.uniform(*self.factors)) if np.random.rand() < self.prob else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(factors={self.factors}, prob={self.prob})"


@TRANSFORMS.register_module()
class RandomPhotometricDistort(BaseTransform):  # type: ignore[misc]
    """Change brightness, contrast, saturation, hue and the order of channels, each at random.

    This is torchvision's ``v2.RandomPhotometricDistort``, which the reference equals. ``PhotoMetricDistortion`` adds a
    value for the brightness, and its contrast changes the brightness too; mmseg's does not permute channels.

    Args:
        brightness: Range of the factor.
        contrast: Range of the factor, applied to the difference from the mean grey.
        saturation: Range of the factor.
        hue: Range of what is added, in turns of the colour wheel: in [-0.5, 0.5].
        prob: How often each of them is changed, in [0, 1].
    """

    def __init__(
        self,
        brightness: tuple[float, float] = (0.875, 1.125),
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: tuple[float, float] = (-0.05, 0.05),
        prob: float = 0.5,
    ) -> None:
        self.distort = v2.RandomPhotometricDistort(brightness, contrast, saturation, hue, prob)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img``, BGR of 8 bits.

        Raises:
            TypeError: If it has another data type, or not three channels.
        """
        image = results["img"]
        if image.dtype != np.uint8:
            raise TypeError(f"RandomPhotometricDistort takes images of 8 bits, got {image.dtype}: put it before others")
        if image.shape[2:] != (3,):
            raise TypeError(f"RandomPhotometricDistort takes images of three channels, got {image.shape}: leave it out")
        rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)
        results["img"] = np.ascontiguousarray(self.distort(rgb).permute(1, 2, 0).numpy()[..., ::-1])
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.distort.extra_repr()})"


@TRANSFORMS.register_module()
class RandomGaussianBlur(BaseTransform):  # type: ignore[misc]
    """Blur an image by a random radius.

    Args:
        max_radius: Largest radius, in pixels; drawn uniformly from 0.
        prob: How often, in [0, 1].
    """

    def __init__(self, max_radius: float = 1.0, prob: float = 0.5) -> None:
        self.max_radius = max_radius
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img``, 8-bit."""
        radius = self._random_radius()
        if radius is not None:
            image = results["img"]  # [H, W] or [H, W, C]
            pixels = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
            results["img"] = np.array(pixels.filter(ImageFilter.GaussianBlur(radius))).reshape(image.shape)
        return results

    @cache_randomness  # type: ignore[untyped-decorator]
    def _random_radius(self) -> float | None:
        return float(np.random.uniform(0, self.max_radius)) if np.random.rand() < self.prob else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_radius={self.max_radius}, prob={self.prob})"


@TRANSFORMS.register_module()
class ResizeToFloorMultiple(BaseTransform):  # type: ignore[misc]
    """Shrink an image to the next multiple of a divisor below; ``ResizeToMultiple`` enlarges.

    Args:
        size_divisor: Divisor of both sides: the network's output stride.
    """

    def __init__(self, size_divisor: int = 16) -> None:
        self.size_divisor = size_divisor

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img`` and ``img_shape``; labels stay as they are, for evaluation at their own size.

        Raises:
            ValueError: If a side is smaller than the divisor.
        """
        height, width = results["img"].shape[:2]
        new_height, new_width = (side // self.size_divisor * self.size_divisor for side in (height, width))
        if not new_height or not new_width:
            raise ValueError(f"an image of {height}x{width} is smaller than size_divisor {self.size_divisor}")
        if (new_height, new_width) != (height, width):
            results["img"] = cv2.resize(results["img"], (new_width, new_height), interpolation=cv2.INTER_LINEAR)
            results["img_shape"] = results["img"].shape[:2]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size_divisor={self.size_divisor})"

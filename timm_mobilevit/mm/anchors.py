"""Anchors of the reference SSD: fractions of the image, for any image size."""

from ._installed import check_installed

check_installed("detection")

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.prior_generators import SSDAnchorGenerator
from mmdet.registry import TASK_UTILS
from torch import Tensor


@TASK_UTILS.register_module()
class SSDLiteAnchorGenerator(SSDAnchorGenerator):  # type: ignore[misc]
    """Anchors whose sizes are fractions of the image and whose centres come from the size of the maps.

    The scales go in equal steps from ``min_ratio`` to ``max_ratio`` of the image. Widths and heights are clamped to the
    image in centre form: centres never move, corners may lie outside.

    Args:
        ratios: Aspect ratios of each level besides 1; each gives a wide and a tall anchor.
        min_ratio: Scale of the first level, as a fraction of the image.
        max_ratio: Scale after the last level.
        input_size: Side of the images in pixels, or (width, height), where :meth:`grid_priors` is not told.

    Example:
        >>> sizes = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
        >>> anchors = SSDLiteAnchorGenerator().grid_priors(sizes, device="cpu")
        >>> sum(len(level) for level in anchors), anchors[0][0].round().tolist()
        (3232, [-8.0, -8.0, 24.0, 24.0])
    """

    def __init__(
        self,
        ratios: Sequence[Sequence[float]] = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,)),
        min_ratio: float = 0.1,
        max_ratio: float = 1.05,
        input_size: int | tuple[int, int] = 320,
    ) -> None:
        levels = len(ratios)
        scales = np.linspace(min_ratio, max_ratio, levels + 1).tolist()
        # In units of the image and of a cell: mmdet's order of shapes, our sizes and places.
        super().__init__(
            strides=[1] * levels, ratios=ratios, min_sizes=scales[:-1], max_sizes=scales[1:], scale_major=False
        )
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)

    def grid_priors(
        self,
        featmap_sizes: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
        device: Any = "cuda",
        input_size: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """Make the anchors of every level.

        Args:
            featmap_sizes: Height and width of each map.
            dtype: Data type of the anchors.
            device: Device of the anchors.
            input_size: Width and height of the images, in pixels.

        Returns:
            Corners (x1, y1, x2, y2) in pixels, [cells · shapes, 4] per level, rows first.
        """
        size = torch.tensor(input_size or self.input_size, dtype=dtype, device=device)
        levels = []
        for base, (height, width) in zip(self.base_anchors, featmap_sizes, strict=True):
            half = (base[:, 2:] - base[:, :2]).to(device, dtype).clamp(max=1) / 2  # [A, 2]
            y, x = torch.meshgrid(
                (torch.arange(height, device=device, dtype=dtype) + 0.5) / height,
                (torch.arange(width, device=device, dtype=dtype) + 0.5) / width,
                indexing="ij",
            )
            centres = torch.stack((x, y), dim=-1).reshape(-1, 1, 2)  # [cells, 1, 2]
            corners = torch.cat(((centres - half) * size, (centres + half) * size), dim=-1)  # [cells, A, 4]
            levels.append(corners.reshape(-1, 4))
        return levels

"""SSD's random crop, by the rule of the reference."""

from ._installed import check_installed

check_installed("detection")

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmdet.structures.bbox import HorizontalBoxes, autocast_box_type
from mmengine.registry import TRANSFORMS
from numpy.typing import NDArray

_CROP_MODES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_MOST_MODES = 50


@TRANSFORMS.register_module()
class SSDCrop(BaseTransform):  # type: ignore[misc]
    """SSD's random crop (arXiv:1512.02325, Section 2.2), by the rule of CVNets.

    A mode is drawn; 0 does not change the image. Otherwise a crop is drawn that overlaps some box by at least the mode
    (intersection over union) and holds the centre of some box; boxes whose centre is outside are dropped, the others
    clipped. After ``trials`` failures another mode is drawn. mmdet's ``MinIoURandomCrop`` requires the overlap with
    *every* box, and mode 0 there is a crop without condition.

    Args:
        modes: Smallest overlaps, in [0, 1].
        min_scale: Smallest side of a crop, as a fraction of the image's.
        min_size: Smallest side of a crop, in pixels; 100 in CVNets v0.2, 0 in v0.1.
        trials: Crops tried per mode.
    """

    def __init__(
        self, modes: Sequence[float] = _CROP_MODES, min_scale: float = 0.3, min_size: int = 100, trials: int = 40
    ) -> None:
        self.modes = tuple(modes)
        self.min_scale = min_scale
        self.min_size = min_size
        self.trials = trials

    @autocast_box_type()  # type: ignore[untyped-decorator]
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop ``img`` and ``gt_bboxes``, with the labels, flags, masks and segmentation map that belong to them."""
        boxes = results["gt_bboxes"]
        crop = self._random_crop(boxes.tensor.numpy(), *results["img"].shape[:2]) if len(boxes) else None
        if crop is None:
            return results
        left, top, right, bottom = crop
        inside = _centres_inside(boxes.tensor.numpy(), crop)
        boxes = boxes[inside]
        boxes.translate_([-left, -top])
        boxes.clip_([bottom - top, right - left])
        results["gt_bboxes"] = boxes
        for key in ("gt_bboxes_labels", "gt_ignore_flags"):
            if key in results:
                results[key] = results[key][inside]
        if "gt_masks" in results:
            results["gt_masks"] = results["gt_masks"][inside.nonzero()[0]].crop(np.asarray(crop))
        if "gt_seg_map" in results:
            results["gt_seg_map"] = results["gt_seg_map"][top:bottom, left:right]
        results["img"] = results["img"][top:bottom, left:right]
        results["img_shape"] = results["img"].shape[:2]
        return results

    @cache_randomness  # type: ignore[untyped-decorator]
    def _random_crop(self, boxes: NDArray[Any], height: int, width: int) -> tuple[int, int, int, int] | None:
        # The reference draws until a crop is found or the mode is 0; with small boxes that could take very long.
        for _ in range(_MOST_MODES):
            mode = np.random.choice(self.modes)
            if mode == 0:
                return None
            for _ in range(self.trials):
                w, h = (int(np.random.uniform(self.min_scale, 1) * side) for side in (width, height))
                if min(w, h) < max(self.min_size, 1) or not 0.5 <= h / w <= 2:
                    continue
                left, top = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
                crop = (left, top, left + w, top + h)
                if _overlaps(boxes, crop).max() >= mode and _centres_inside(boxes, crop).any():
                    return crop
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(modes={self.modes}, min_size={self.min_size})"


def _overlaps(boxes: NDArray[Any], crop: tuple[int, int, int, int]) -> NDArray[Any]:
    ours = HorizontalBoxes(np.asarray(crop, dtype=np.float32).reshape(1, 4))
    return HorizontalBoxes.overlaps(HorizontalBoxes(boxes), ours).numpy()[:, 0]  # type: ignore[no-any-return]


def _centres_inside(boxes: NDArray[Any], crop: tuple[int, int, int, int]) -> NDArray[Any]:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > crop[:2]) & (centres < crop[2:])).all(axis=1)  # type: ignore[no-any-return]

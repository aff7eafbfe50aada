"""The augmentations that our recipes need and mm lacks."""

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import TRANSFORMS

from timm_mobilevit.mm.transforms import _overlaps


class TestTransforms:
    @pytest.fixture(autouse=True)
    def _numpy_seed(self):
        np.random.seed(0)

    def results(self, boxes=((10, 20, 120, 140), (150, 100, 290, 190))):
        boxes = HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        image = np.random.randint(0, 255, (200, 300, 3), dtype=np.uint8)
        labels = np.arange(len(boxes))
        return {
            "img": image,
            "img_shape": (200, 300),
            "gt_bboxes": boxes,
            "gt_bboxes_labels": labels,
            "gt_ignore_flags": np.zeros(len(boxes), bool),
        }

    @pytest.mark.parametrize("mode", [0.1, 0.5, 0.9])
    def test_crop_keeps_its_promise(self, mode):
        crop = TRANSFORMS.build({"type": "SSDCrop", "modes": (mode,)})
        boxes = ((5, 5, 290, 190), (150, 100, 290, 190))  # one of them large enough for any overlap
        cropped = 0
        for _ in range(20):
            found = crop._random_crop(np.float32(boxes), 200, 300)
            if found is not None:
                left, top, right, bottom = found
                assert min(right - left, bottom - top) >= 100
                assert 0.5 <= (bottom - top) / (right - left) <= 2
                assert _overlaps(np.float32(boxes), found).max() >= mode
            after = crop(self.results(boxes))
            cropped += after["img"].shape != (200, 300, 3)
            height, width = after["img_shape"]
            kept = after["gt_bboxes"].tensor
            assert 1 <= len(kept) == len(after["gt_bboxes_labels"]) == len(after["gt_ignore_flags"])
            assert (kept >= 0).all()
            assert (kept <= torch.tensor([width, height, width, height])).all()
        assert cropped

    def test_crop_moves_boxes_with_the_image(self):
        results = self.results(((40, 50, 160, 170),))
        results["img"][:] = 0
        results["img"][50:170, 40:160] = 255
        after = TRANSFORMS.build({"type": "SSDCrop", "modes": (0.5,)})(results)
        x1, y1, x2, y2 = after["gt_bboxes"].tensor[0].int().tolist()
        assert (after["img"][y1:y2, x1:x2] == 255).all()
        assert after["img"].sum() == 255 * 3 * (x2 - x1) * (y2 - y1)

    def test_crop_leaves_alone(self):
        crop = TRANSFORMS.build({"type": "SSDCrop", "modes": (0.0,)})
        assert crop(self.results())["img"].shape == (200, 300, 3)
        assert TRANSFORMS.build({"type": "SSDCrop"})(self.results(()))["img"].shape == (200, 300, 3)
        impossible = TRANSFORMS.build({"type": "SSDCrop", "modes": (1.0,)})
        assert impossible(self.results(((0, 0, 9, 9),)))["img"].shape == (200, 300, 3)

    def test_brightness(self):
        image = np.full((4, 4, 3), 100, np.uint8)
        brighter = TRANSFORMS.build({"type": "RandomBrightnessFactor", "factors": (1.5, 1.5), "prob": 1.0})
        assert (brighter({"img": image})["img"] == 150).all()
        assert (brighter({"img": image * 2})["img"] == 255).all()
        assert TRANSFORMS.build({"type": "RandomBrightnessFactor", "prob": 0.0})({"img": image})["img"] is image

    def test_blur(self):
        image = np.random.randint(0, 255, (32, 32, 3), dtype=np.uint8)
        blurred = TRANSFORMS.build({"type": "RandomGaussianBlur", "max_radius": 5.0, "prob": 1.0})({"img": image})[
            "img"
        ]
        assert blurred.dtype == np.uint8
        assert blurred.std() < image.std()
        assert TRANSFORMS.build({"type": "RandomGaussianBlur", "prob": 0.0})({"img": image})["img"] is image

    def test_floor_multiple(self):
        shrink = TRANSFORMS.build({"type": "ResizeToFloorMultiple", "size_divisor": 16})
        assert shrink({"img": np.zeros((70, 64, 3), np.uint8)})["img_shape"] == (64, 64)
        image = np.zeros((64, 32, 3), np.uint8)
        assert shrink({"img": image})["img"] is image
        with pytest.raises(ValueError, match="smaller than size_divisor 16"):
            shrink({"img": np.zeros((8, 64, 3), np.uint8)})

    @pytest.mark.parametrize(
        "name", ["SSDCrop", "RandomBrightnessFactor", "RandomGaussianBlur", "ResizeToFloorMultiple"]
    )
    def test_representation(self, name):
        assert repr(TRANSFORMS.build({"type": name})).startswith(f"{name}(")

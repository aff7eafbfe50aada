"""The augmentations that our recipes need and mm lacks."""

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageFilter

import timm_mobilevit.mm  # noqa: F401  registers the transforms


class TestTransforms:
    @pytest.fixture(autouse=True)
    def _numpy_seed(self):
        np.random.seed(0)

    def results(self, boxes=((10, 20, 120, 140), (150, 100, 290, 190))):
        """An image of 200×300 whose pixels say where they are: row, column."""
        from mmdet.structures.bbox import HorizontalBoxes

        image = np.stack([*np.mgrid[:200, :300], np.zeros((200, 300), int)], axis=-1).astype(np.int32)
        return {
            "img": image,
            "img_shape": (200, 300),
            "gt_bboxes": HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            "gt_bboxes_labels": np.arange(len(boxes)),
            "gt_ignore_flags": np.zeros(len(boxes), bool),
        }

    @pytest.mark.detection
    @pytest.mark.parametrize("mode", [0.1, 0.5, 0.9])
    def test_crop_keeps_its_promise(self, mode):
        """Some box, not every one, overlaps the crop by the mode; boxes whose centre is outside are gone."""
        crop = TRANSFORMS.build({"type": "SSDCrop", "modes": (mode,)})
        boxes = np.float64([[5, 5, 290, 190], [0, 0, 6, 6], [150, 100, 290, 190]])
        for _ in range(20):
            after = crop(self.results(boxes))
            height, width = after["img_shape"]
            assert (height, width) == after["img"].shape[:2] != (200, 300)
            assert min(height, width) >= 100
            assert 0.5 <= height / width <= 2
            top, left = after["img"][0, 0, :2]
            low, high = np.float64([left, top]), np.float64([left + width, top + height])
            common = (np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)).clip(0).prod(1)
            union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + height * width - common
            assert (common / union).max() >= mode
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((centres > low) & (centres < high)).all(1)
            assert inside.any()
            assert after["gt_bboxes_labels"].tolist() == inside.nonzero()[0].tolist()
            assert len(after["gt_ignore_flags"]) == inside.sum()
            moved = np.concatenate([boxes[:, :2] - low, boxes[:, 2:] - low], 1)[inside]
            np.testing.assert_allclose(after["gt_bboxes"].tensor, moved.clip(0, [width, height, width, height]))

    @pytest.mark.detection
    def test_masks_are_cropped_as_the_image(self):
        """They, and the segmentation map, say where they are as the pixels do."""
        from mmdet.structures.mask import BitmapMasks

        results = self.results()
        rows = results["img"][..., 0]
        results["gt_masks"] = BitmapMasks(np.stack([rows, 1 + rows]).astype(np.uint8), 200, 300)
        results["gt_seg_map"] = rows
        before = results["img"]
        after = TRANSFORMS.build({"type": "SSDCrop", "modes": (0.5,)})(results)
        assert after["img"].shape != before.shape
        np.testing.assert_array_equal(after["gt_seg_map"], after["img"][..., 0])
        kept = after["gt_bboxes_labels"]
        assert len(kept) >= 1
        np.testing.assert_array_equal(after["gt_masks"].masks, kept[:, None, None] + after["img"][None, ..., 0])

    @pytest.mark.detection
    def test_sides_of_the_crop(self):
        """From 0.3 of the image's to all of it; by default not below 100 pixels."""
        crop = TRANSFORMS.build({"type": "SSDCrop", "modes": (0.01,), "min_size": 0})
        sizes = np.array([crop(self.results(((0, 0, 300, 200),)))["img"].shape[:2] for _ in range(200)]) / [200, 300]
        assert (sizes >= 0.295).all()  # whole pixels
        assert (sizes.min(0) < 0.36).all()
        assert (sizes.max(0) > 0.94).all()

    @pytest.mark.detection
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
        deep = np.full((4, 4, 3), 40000, np.uint16)
        assert (brighter({"img": deep // 2})["img"] == 30000).all()
        assert (brighter({"img": 2 * (deep // 2) + 10000})["img"] == 65535).all()
        default = TRANSFORMS.build({"type": "RandomBrightnessFactor"})
        values = [int(default({"img": image})["img"][0, 0, 0]) for _ in range(400)]
        assert (min(values), max(values)) in [(low, high) for low in (87, 88) for high in (111, 112)]
        assert 0.4 < values.count(100) / 400 < 0.6
        assert TRANSFORMS.build({"type": "RandomBrightnessFactor", "prob": 0.0})({"img": image})["img"] is image

    @pytest.mark.parametrize(
        ("options", "pixels", "expected"),  # BGR, a row of pixels
        [
            ({"brightness": (1.1, 1.1)}, [[100, 50, 10]], [[110, 55, 11]]),
            ({"contrast": (0.5, 0.5)}, [[50, 50, 50], [150, 150, 150]], [[75, 75, 75], [125, 125, 125]]),
            ({"saturation": (0.0, 0.0)}, [[0, 0, 255], [255, 0, 0]], [[76, 76, 76], [29, 29, 29]]),  # luminances
            ({"hue": (0.25, 0.25)}, [[0, 0, 200]], [[0, 200, 100]]),  # a quarter of the circle after red
        ],
    )
    def test_photometric_distortion(self, options, pixels, expected, monkeypatch):
        same = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
        distort = TRANSFORMS.build({"type": "RandomPhotometricDistort", **same, **options, "prob": 1.0})
        image = np.array([pixels], np.uint8)
        monkeypatch.setattr(torch, "randperm", torch.arange)
        np.testing.assert_allclose(distort({"img": image})["img"], [expected], atol=1)
        assert distort({"img": image})["img"].dtype == np.uint8
        monkeypatch.undo()
        never = TRANSFORMS.build({"type": "RandomPhotometricDistort", "prob": 0.0})
        np.testing.assert_array_equal(never({"img": image})["img"], image)
        with pytest.raises(TypeError, match="takes images of 8 bits, got float32"):
            never({"img": image.astype(np.float32)})
        with pytest.raises(TypeError, match=r"takes images of three channels, got \(1, 1, 1\): leave it out"):
            never({"img": image[:, :1, :1]})

    def test_photometric_distortion_permutes_channels(self):
        distort = TRANSFORMS.build({"type": "RandomPhotometricDistort", "prob": 1.0, "hue": (0.0, 0.0)})
        image = np.broadcast_to(np.array([20, 120, 220], np.uint8), (4, 4, 3))
        orders = {tuple(distort({"img": image})["img"][0, 0].argsort().tolist()) for _ in range(100)}
        assert len(orders) == 6

    def test_blur(self, monkeypatch):
        image = np.random.randint(0, 255, (32, 32, 3), dtype=np.uint8)
        blur = TRANSFORMS.build({"type": "RandomGaussianBlur"})
        unchanged = [blur({"img": image})["img"] is image for _ in range(200)]
        assert 0.4 < np.mean(unchanged) < 0.6
        monkeypatch.setattr(np.random, "uniform", lambda low, high: high)  # the largest radius
        for options, radius in (({}, 1), ({"max_radius": 5.0}, 5)):
            blurred = TRANSFORMS.build({"type": "RandomGaussianBlur", "prob": 1.0, **options})({"img": image})["img"]
            expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
            np.testing.assert_array_equal(blurred, np.asarray(expected))
            grey = TRANSFORMS.build({"type": "RandomGaussianBlur", "prob": 1.0, **options})({"img": image[..., :1]})
            np.testing.assert_array_equal(grey["img"], np.asarray(expected)[..., :1])
        assert TRANSFORMS.build({"type": "RandomGaussianBlur", "prob": 0.0})({"img": image})["img"] is image

    def test_floor_multiple(self):
        shrink = TRANSFORMS.build({"type": "ResizeToFloorMultiple", "size_divisor": 16})
        assert shrink({"img": np.zeros((70, 64, 3), np.uint8)})["img_shape"] == (64, 64)
        ramp = np.broadcast_to(10.0 * np.arange(20, dtype=np.float32)[:, None, None], (20, 33, 3))
        shrunk = shrink({"img": np.ascontiguousarray(ramp)})["img"]
        assert shrunk.shape == (16, 32, 3)
        rows = 10 * ((np.arange(16) + 0.5) * 20 / 16 - 0.5)  # linear between the centres of pixels
        np.testing.assert_allclose(shrunk[:, 5, 1], rows, atol=0.1)
        image = np.zeros((64, 32, 3), np.uint8)
        assert shrink({"img": image})["img"] is image
        with pytest.raises(ValueError, match="smaller than size_divisor 16"):
            shrink({"img": np.zeros((8, 64, 3), np.uint8)})

    @pytest.mark.parametrize(
        ("name", "defaults"),
        [
            pytest.param(
                "SSDCrop",
                "modes=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), min_size=100",
                marks=pytest.mark.detection,
            ),
            ("RandomBrightnessFactor", "factors=(0.875, 1.125), prob=0.5"),
            ("RandomGaussianBlur", "max_radius=1.0, prob=0.5"),
            (
                "RandomPhotometricDistort",
                "brightness=(0.875, 1.125), contrast=(0.5, 1.5), hue=(-0.05, 0.05), saturation=(0.5, 1.5), p=0.5",
            ),
            ("ResizeToFloorMultiple", "size_divisor=16"),
        ],
    )
    def test_representation_and_defaults(self, name, defaults):
        transform = TRANSFORMS.build({"type": name})
        assert repr(transform) == f"{name}({defaults})"
        assert getattr(transform, "trials", 40) == 40

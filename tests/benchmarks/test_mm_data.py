"""The digit scenes: their two formats agree, nothing to validate on was trained on, folders are whole or absent."""

import doctest
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks import mm_data
from benchmarks.digits_data import write_digits
from benchmarks.mm_data import CLASSES, write_scenes

SIZES = {"train": 12, "val": 5, "size": 64}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", **SIZES)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_are_those_of_the_masks(scenes, split):
    content = json.loads((scenes / f"annotations/{split}.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASSES)
    assert len(content["images"]) == SIZES[split]
    for image in content["images"]:
        picture = Image.open(scenes / "img_dir" / split / image["file_name"])
        mask = np.asarray(Image.open(scenes / "ann_dir" / split / image["file_name"].replace(".jpg", ".png")))
        assert (picture.mode, picture.size, mask.shape) == ("RGB", (64, 64), (64, 64))
        boxes = [box for box in content["annotations"] if box["image_id"] == image["id"]]
        assert boxes
        for box in boxes:
            left, top, width, height = box["bbox"]
            inside = mask[top : top + height, left : left + width] == box["category_id"]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            mask = mask.copy()
            mask[top : top + height, left : left + width][inside] = 0
        assert not mask.any()  # every digit has a box


def test_ink_is_lighter_than_the_ground(scenes):
    for file in (scenes / "img_dir/train").iterdir():
        luminance = np.asarray(Image.open(file).convert("L"), dtype=float)
        mask = np.asarray(Image.open(scenes / f"ann_dir/train/{file.stem}.png")) > 0
        assert luminance[mask].mean() > luminance[~mask].mean() + 30


def test_splits_share_no_scan_and_no_region(tmp_path, monkeypatch):
    scans, _ = load_digits(return_X_y=True)
    held_out = {scans[int(path.stem)].tobytes() for path in write_digits(tmp_path / "digits").glob("val/*/*.png")}
    seen = []
    compose = mm_data._compose

    def spy(rng, digits, backgrounds, *rest):
        seen.append(({(16 * scan).tobytes() for scan, _ in digits}, backgrounds))
        return compose(rng, digits, backgrounds, *rest)

    monkeypatch.setattr(mm_data, "_compose", spy)
    write_scenes(tmp_path / "scenes", train=1, val=1, size=32)
    (train, train_grounds), (val, val_grounds) = seen
    assert val == held_out
    assert not train & val
    for left, right in zip(train_grounds, val_grounds, strict=True):
        assert not np.shares_memory(left, right)
        assert left.shape[1] + right.shape[1] == 640  # the whole photograph


def test_seed_decides(scenes, tmp_path):
    assert contents(write_scenes(tmp_path / "again", **SIZES)) == contents(scenes)
    assert contents(write_scenes(tmp_path / "other", **SIZES, seed=1)) != contents(scenes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_complete_folder_is_reused(scenes, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *_: pytest.fail("wrote again"))
    assert write_scenes(scenes, **SIZES) == scenes


@pytest.mark.parametrize("damage", ["missing", "unknown", "seed"])
def test_other_content_is_refused_and_left_alone(scenes, tmp_path, damage):
    root = shutil.copytree(scenes, tmp_path / "scenes")
    if damage == "missing":
        (root / "ann_dir/val/0000.png").unlink()
    elif damage == "unknown":
        (root / "notes.txt").touch()
    before = contents(root)
    with pytest.raises(FileExistsError, match="Remove it or name another"):
        write_scenes(root, **SIZES, seed=int(damage == "seed"))
    assert contents(root) == before


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(mm_data.json, "dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(tmp_path / "scenes", **SIZES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": 0}, {"size": 16}, {"digit_sides": (0.5, 0.2)}, {"digit_sides": (0.5, 1.5)}]
)
def test_bad_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="got"):
        write_scenes(tmp_path / "scenes", **{**SIZES, **wrong})


def test_examples():
    assert doctest.testmod(mm_data).failed == 0

"""Scenes of real pictures for detection and segmentation: scikit-learn's digit scans on its bundled photographs.

``python -m benchmarks.mm_data`` writes them. A scene has both sorts of labels, so one folder serves MMDetection (boxes,
COCO format) and MMSegmentation (masks, the format of ADE20K and Pascal VOC):

- ``annotations/{train,val}.json``: boxes of the ten classes "0" to "9", of the images below;
- ``img_dir/{train,val}/NNNN.jpg``: the scenes;
- ``ann_dir/{train,val}/NNNN.png``: 8-bit masks, 0 is the background and 1 to 10 are the digits 0 to 9.

Nothing of a scene to validate on is in one to train on: the scans are those that ``benchmarks.digits`` holds out too,
and the photographs are cut in two.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

from benchmarks.digits_data import MAX_LEVEL, SPLIT_SEED, VAL_SHARE

DATA = Path("output/digit-scenes")
CLASSES = tuple(str(digit) for digit in range(10))
TRAIN_COLUMNS = 0.65  # the photographs' left part is for training
MAX_DIGITS = 4
DARKENING = 0.5  # of the photographs, so that any light ink stands out
MIN_INK = 180  # luminance of an ink, of 255
LUMINANCE = np.array([0.299, 0.587, 0.114])
TRIALS = 20  # places tried for a digit before it is left out


def write_scenes(
    root: str | Path,
    *,
    train: int = 3000,
    val: int = 150,
    size: int = 128,
    digit_sides: tuple[float, float] = (0.35, 0.7),
    seed: int = 0,
) -> Path:
    """Write the scenes below ``root``, or leave a complete folder as it is.

    The folder appears all at once or not at all. The same arguments always give the same scenes.

    Args:
        root: Folder to write. Folders above it are made where needed.
        train: Scenes to train on.
        val: Scenes to validate on.
        size: Side of the square scenes, in pixels, at least 32.
        digit_sides: Smallest and largest side of an enlarged scan, as fractions of the scene's, in (0, 1].
        seed: Of the composition. Which scans and which part of the photographs are held out does not depend on it.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` exists and holds anything else than these scenes. Nothing in it is changed.
        ValueError: A number is out of its range.

    Example:
        >>> import tempfile
        >>> folder = write_scenes(Path(tempfile.mkdtemp()) / "scenes", train=2, val=1, size=64)
        >>> sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))  # doctest: +ELLIPSIS
        ['ann_dir/train/0000.png', 'ann_dir/train/0001.png', 'ann_dir/val/0000.png', 'annotations/train.json', ...]
    """
    if min(train, val) < 1 or size < 32:
        raise ValueError(
            f"expected at least one scene each, of at least 32 pixels, got {train}, {val} of {size} pixels"
        )
    if not 0 < digit_sides[0] <= digit_sides[1] <= 1:
        raise ValueError(f"digit_sides must be two rising fractions in (0, 1], got {digit_sides}")
    root = Path(root)
    counts = {"train": train, "val": val}
    description = "scikit-learn's digits on its photographs"
    info = {"description": description, **counts, "size": size, "digit_sides": list(digit_sides), "seed": seed}
    if root.exists():
        _check_complete(root, counts, info)
        return root

    scans, labels = load_digits(return_X_y=True)
    indices = train_test_split(np.arange(len(labels)), test_size=VAL_SHARE, stratify=labels, random_state=SPLIT_SEED)
    photographs = [_split_columns(photograph) for photograph in load_sample_images().images]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        folder = Path(scratch) / root.name
        for part, (split, count) in enumerate(counts.items()):
            rng = np.random.default_rng([seed, part])
            digits = [(scans[i].reshape(8, 8) / MAX_LEVEL, int(labels[i])) for i in indices[part]]
            backgrounds = [photograph[part] for photograph in photographs]
            scenes = (_compose(rng, digits, backgrounds, size, digit_sides) for _ in range(count))
            _write_split(folder, split, scenes, info)
        os.replace(folder, root)
    return root


def _split_columns(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    column = round(photograph.shape[1] * TRAIN_COLUMNS)
    return photograph[:, :column], photograph[:, column:]


def _compose(
    rng: np.random.Generator,
    digits: list[tuple[np.ndarray, int]],
    backgrounds: list[np.ndarray],
    size: int,
    digit_sides: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """Make a scene: picture [size, size, 3], mask [size, size], and class and box (x, y, w, h) of each digit."""
    scene = _random_crop(rng, backgrounds[rng.integers(len(backgrounds))], size)
    mask = np.zeros((size, size), dtype=np.uint8)
    boxes: list[tuple[int, list[int]]] = []
    free = np.ones((size, size), dtype=bool)
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        scan, label = digits[rng.integers(len(digits))]
        side = int(size * rng.uniform(*digit_sides))
        ink = _enlarge(scan, side)
        for _ in range(TRIALS):
            top, left = rng.integers(0, size - side + 1, size=2)
            place = (slice(top, top + side), slice(left, left + side))
            if free[place].all():
                break
        else:
            continue
        free[place] = False
        colour = _light_colour(rng)
        scene[place] = np.rint(scene[place] * (1 - ink[..., None]) + colour * ink[..., None])
        inside = ink > 0.5
        mask[place][inside] = label + 1
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        box = [left + columns[0], top + rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        boxes.append((label, [int(number) for number in box]))
    return scene, mask, boxes


def _random_crop(rng: np.random.Generator, photograph: np.ndarray, size: int) -> np.ndarray:
    side = int(min(photograph.shape[:2]) * rng.uniform(0.5, 1))
    top, left = (rng.integers(0, whole - side + 1) for whole in photograph.shape[:2])
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    picture = np.rint(np.array(crop.resize((size, size), Image.Resampling.BICUBIC)) * DARKENING).astype(np.uint8)
    return picture[:, ::-1].copy() if rng.random() < 0.5 else picture


def _enlarge(scan: np.ndarray, side: int) -> np.ndarray:
    """Return the opacity [side, side], in [0, 1], of a scan [8, 8]."""
    smooth = Image.fromarray(scan.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip((np.array(smooth) - 0.3) / 0.4, 0, 1)  # steeper edges, as of ink


def _light_colour(rng: np.random.Generator) -> np.ndarray:
    while True:
        colour = rng.uniform(0, 255, size=3)
        if colour @ LUMINANCE >= MIN_INK:
            return colour


def _write_split(folder: Path, split: str, scenes: Any, info: dict[str, Any]) -> None:
    images, annotations = [], []
    for name in ("img_dir", "ann_dir"):
        (folder / name / split).mkdir(parents=True)
    for index, (scene, mask, boxes) in enumerate(scenes):
        Image.fromarray(scene).save(folder / f"img_dir/{split}/{index:04d}.jpg", quality=95)
        Image.fromarray(mask).save(folder / f"ann_dir/{split}/{index:04d}.png")
        height, width = mask.shape
        images.append({"id": index, "file_name": f"{index:04d}.jpg", "width": width, "height": height})
        for label, box in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                    "image_id": index,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / f"annotations/{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _check_complete(root: Path, counts: dict[str, int], info: dict[str, Any]) -> None:
    expected = {f"annotations/{split}.json" for split in counts}
    for split, count in counts.items():
        expected |= {f"img_dir/{split}/{i:04d}.jpg" for i in range(count)}
        expected |= {f"ann_dir/{split}/{i:04d}.png" for i in range(count)}
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    same = found == expected and all(
        json.loads((root / f"annotations/{split}.json").read_text(encoding="utf-8"))["info"] == info for split in counts
    )
    if not same:
        raise FileExistsError(
            f"{root} exists but does not hold exactly the scenes asked for ({info}): {len(expected - found)} of "
            f"{len(expected)} files are missing, {len(found - expected)} are unknown. Remove it or name another folder."
        )


def main(
    data: Annotated[Path, typer.Option(file_okay=False, help="Folder, written if missing.")] = DATA,
    train: Annotated[int, typer.Option(min=1, help="Scenes to train on.")] = 3000,
    val: Annotated[int, typer.Option(min=1, help="Scenes to validate on.")] = 150,
    size: Annotated[int, typer.Option(min=32, help="Side of the square scenes in pixels.")] = 128,
    digit_sides: Annotated[
        tuple[float, float], typer.Option(help="Smallest and largest side of a digit, as fractions of the scene's.")
    ] = (0.35, 0.7),
    seed: Annotated[int, typer.Option(help="Of the composition.")] = 0,
) -> None:
    """Write digit scenes with boxes and masks."""
    try:
        write_scenes(data, train=train, val=val, size=size, digit_sides=digit_sides, seed=seed)
    except (FileExistsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{data}: {train} scenes to train on, {val} to validate on")


if __name__ == "__main__":
    typer.run(main)

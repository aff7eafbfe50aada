"""Writes scikit-learn's bundled handwritten digits as an image folder, the layout that timm's scripts train on."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

VAL_SHARE = 0.2
SPLIT_SEED = 0  # the split belongs to the data set: it stays when the seed of a training run changes
MAX_LEVEL = 16  # scans have 17 levels of grey, 0 to 16


def write_digits(root: str | Path) -> Path:
    """Write the 1,797 scans to ``root/{train,val}/{0…9}/NNNN.png``, or leave a complete folder as it is.

    A fifth of each class is held out for validation: 1,437 scans to train on, 360 to validate on. A file is one scan
    as it is, 8x8 pixels, greyscale, the levels 0 to 16 stretched to 0 to 255; ``NNNN`` is its index in
    ``sklearn.datasets.load_digits``. The folder appears all at once or not at all.

    Args:
        root: Folder to write. Folders above it are made where needed.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` exists and holds anything else than these scans. Nothing in it is changed.

    Example:
        >>> import tempfile
        >>> folder = write_digits(Path(tempfile.mkdtemp()) / "digits")
        >>> sorted(path.name for path in (folder / "val" / "7").iterdir())[:2]
        ['0081.png', '0173.png']
    """
    root = Path(root)
    scans, labels = load_digits(return_X_y=True)
    names = dict(_file_names(labels))
    if root.exists():
        _check_complete(root, set(names.values()))
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        folder = Path(scratch) / root.name
        for index, name in names.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            levels = scans[index].reshape(8, 8)
            Image.fromarray(np.rint(levels * (255 / MAX_LEVEL)).astype(np.uint8)).save(path)
        os.replace(folder, root)
    return root


def _file_names(labels: np.ndarray) -> Iterator[tuple[int, str]]:
    """Return the index of every scan with its path below the root."""
    train, val = train_test_split(np.arange(len(labels)), test_size=VAL_SHARE, stratify=labels, random_state=SPLIT_SEED)
    for split, indices in (("train", train), ("val", val)):
        for index in sorted(indices.tolist()):
            yield index, f"{split}/{labels[index]}/{index:04d}.png"


def _check_complete(root: Path, expected: set[str]) -> None:
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    if found != expected:
        raise FileExistsError(
            f"{root} exists but is not the complete folder of digit scans: {len(expected - found)} of "
            f"{len(expected)} files are missing, {len(found - expected)} are unknown. Remove it or name another folder."
        )

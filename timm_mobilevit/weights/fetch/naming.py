"""Which model a file, a folder or an archive belongs to, by its name alone.

The MobileViTv3 release names one folder per model (``mobilevitv3_S_e300_7930``), but nothing says how its archives are
named or nested. Names are therefore compared by their letters and digits only, and always as a whole, so that
``S_e300`` is never taken for ``XS_e300`` or ``1_0_0`` for ``voc_1_0_0``.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from ..pretrained import WEIGHTS

CHECKPOINT = "checkpoint_ema_best.pt"  # the file that the published accuracies were measured with

PLAIN, NAMED, MENTIONED, OTHER, OTHER_TASK = range(5)  # see `rank`

_PLAIN = re.compile(r"\.(pt|pth)$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(zip|tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
_FILLER = re.compile(r"mobilevit_?v3_?|_?checkpoint_ema_best$")
_OTHER_TASK = re.compile(r"(^|_)(voc|coco|ade|seg|det)")


def model_key(name: str) -> str:
    """Reduce a name to the part that tells models apart.

    Args:
        name: Name of a file or folder, without directories.

    Returns:
        Lower-case words joined by underscores, without extension and without the words all names share.

    Example:
        >>> model_key("mobilevitv3_S_e300_7930")
        's_e300_7930'
        >>> model_key("MobileViTv3-1.0.0.tar.gz")
        '1_0_0'
    """
    return _FILLER.sub("", _words(_PLAIN.sub("", _ARCHIVE.sub("", name))))


def _words(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


_KEYS = {model_key(row.folder) for row in WEIGHTS.values() if row.folder}


def belongs(path: str, folder: str) -> bool | None:
    """Tell whether the innermost directory of ``path`` that names a model names this one.

    Args:
        path: Path with forward slashes, as it stands in an archive.
        folder: Folder of the model in the release.

    Returns:
        True or False, or None where no directory names a model.

    Example:
        >>> belongs("MobileViTv3-1.0.0/mobilevitv3_S_e300_7930/checkpoint_ema_best.pt", "mobilevitv3_1_0_0")
        False
    """
    wanted = model_key(folder)
    for part in reversed(PurePosixPath(path).parts[:-1]):
        key = model_key(part)
        if key == wanted:
            return True
        if key and (key in _KEYS or _FILLER.search(_words(part))):
            return False
    return None


def select(paths: Iterable[str], folder: str, *, flat: bool = False) -> str | None:
    """Find the one EMA-best checkpoint of a model among many paths.

    Args:
        paths: Paths with forward slashes.
        folder: Folder of the model in the release.
        flat: Also take a checkpoint that stands in no model's folder. For an archive that is named after the model.

    Returns:
        The path, or None where the model is not among them.

    Raises:
        ValueError: If several paths fit.
    """
    checkpoints = [path for path in paths if PurePosixPath(path).name == CHECKPOINT]
    found = [path for path in checkpoints if belongs(path, folder)]
    if not found and flat:
        found = [path for path in checkpoints if belongs(path, folder) is None]
    if len(found) > 1:
        raise ValueError(f"expected one {CHECKPOINT} of {folder}, found {len(found)}: {', '.join(sorted(found)[:5])}")
    return found[0] if found else None


def is_plain(name: str) -> bool:
    """Whether a name is that of a checkpoint (which PyTorch writes as a zip file: content does not tell them apart)."""
    return _PLAIN.search(name) is not None


def is_zip(name: str) -> bool:
    """Whether a name is that of a zip archive, whose directory stands at its end."""
    return name.lower().endswith(".zip")


def is_named_after(name: str, folder: str) -> bool:
    """Whether a checkpoint or an archive carries exactly this model's name."""
    return model_key(name) == model_key(folder)


def rank(name: str, folder: str) -> int | None:
    """Judge how likely a file of the release is, or holds, a model's folder.

    Args:
        name: Name of the file.
        folder: Folder of the model in the release.

    Returns:
        The lower the likelier: 0 for the checkpoint itself, 1 for an archive of that name, 2 for an archive whose name
        mentions it, 3 for any other archive, 4 for one that seems to be about detection or segmentation. None for what
        cannot hold it.

    Example:
        >>> [rank(f"mobilevitv3_{name}.zip", "mobilevitv3_1_0_0") for name in ("1.0.0", "all", "voc_1_0_0", "0_5_0")]
        [1, 3, 4, None]
    """
    key, wanted = model_key(name), model_key(folder)
    if is_plain(name):
        return PLAIN if key == wanted else None
    if not _ARCHIVE.search(name):
        return None
    if key == wanted:
        return NAMED
    if key in _KEYS:
        return None
    if _OTHER_TASK.search(key):
        return OTHER_TASK
    return MENTIONED if f"_{wanted}_" in f"_{key}_" else OTHER

"""Checkpoints in a directory that somebody filled by hand: ``TIMM_MOBILEVIT_WEIGHTS``."""

import logging
import os
from pathlib import Path

from ..pretrained import APPLE, Weights
from .archive import ARCHIVE, CHECKPOINT, BrokenArchiveError, take_checkpoint
from .release import KNOWN
from .store import Source

VARIABLE = "TIMM_MOBILEVIT_WEIGHTS"
_logger = logging.getLogger(__name__)


def weights_tree() -> Path | None:
    """Get the directory that the environment names, or None where it names none.

    Raises:
        NotADirectoryError: If it does not exist.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    tree = Path(value).expanduser().absolute()
    if not tree.is_dir():
        raise NotADirectoryError(f"{VARIABLE}={value} is not a directory: correct it or unset it")
    return tree


def path_of(row: Weights) -> str:
    """Get the end of a path that tells one checkpoint from the others.

    Base names do not: all of Micron's are equal, and two sizes of Apple's are called ``mobilevitv2-1.0.pt``.
    """
    return f"{row.folder}/{CHECKPOINT}" if row.folder is not None else str(row.url).removeprefix(APPLE)


def from_tree(row: Weights, tree: Path, work: Path) -> Source | None:
    """Look for the checkpoint of one row of the pretrained table: as a file, then in archives.

    Args:
        row: The row.
        tree: Directory to search, with all directories in it. It may be the model's folder itself.
        work: Directory for a checkpoint that has to be taken out of an archive.

    Returns:
        Where the checkpoint is, or None where it is not in the tree.

    Raises:
        ValueError: If several files fit, or ``models.zip`` is broken. Other broken archives are passed over.
    """
    files, wanted = sorted(path for path in tree.rglob("*") if path.is_file()), path_of(row)
    found = [path for path in files if path.as_posix().endswith(f"/{wanted}")]
    if len(found) > 1:
        raise ValueError(f"expected one file for {wanted}, found {len(found)}: {', '.join(map(str, found[:5]))}")
    if found:
        return Source(found[0], str(found[0]))
    archives = [path for path in files if row.folder is not None and ARCHIVE.fullmatch(path.name)]
    for path in sorted(archives, key=lambda path: path.name != KNOWN):
        try:
            member = take_checkpoint(path, str(row.folder), work / "checkpoint.pt")
        except BrokenArchiveError as error:
            if path.name == KNOWN:
                raise
            _logger.warning("%s=%s: passing over %s", VARIABLE, tree, error)
            continue
        if member:
            return Source(work / "checkpoint.pt", str(path), member)
    return None

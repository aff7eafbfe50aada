"""Checkpoints in a directory that somebody filled by hand: ``TIMM_MOBILEVIT_WEIGHTS``."""

import logging
import os
from pathlib import Path

from ..pretrained import APPLE, Weights
from . import naming
from .archive import take_checkpoint
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


def tail(url: str) -> str:
    """Get what tells one of Apple's files from the others: base names repeat (``mobilevitv2-1.0.pt`` has two sizes)."""
    return url.removeprefix(APPLE)


def from_tree(row: Weights, tree: Path, work: Path) -> Source | None:
    """Look for the checkpoint of one row of the pretrained table.

    Args:
        row: The row.
        tree: Directory to search, with all directories in it.
        work: Directory for a checkpoint that has to be taken out of an archive.

    Returns:
        Where the checkpoint is, or None where it is not in the tree.

    Raises:
        ValueError: If several files fit, or the archive named after the model is broken.
    """
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    if row.folder is None:
        return _by_address(row, files)
    return _by_folder(row.folder, tree, files) or _in_archives(row.folder, files, work)


def _by_address(row: Weights, files: list[Path]) -> Source | None:
    assert row.url is not None
    wanted = tail(row.url)
    return _only([path for path in files if path.as_posix().endswith(f"/{wanted}")], wanted)


def _by_folder(folder: str, tree: Path, files: list[Path]) -> Source | None:
    # The tree's own name counts: it may be the model's folder itself.
    checkpoints = {path.relative_to(tree.parent).as_posix(): path for path in files}
    inside = naming.select(checkpoints, folder)
    if inside is not None:
        return _source(checkpoints[inside])
    return _only([path for path in files if naming.rank(path.name, folder) == naming.PLAIN], folder)


def _in_archives(folder: str, files: list[Path], work: Path) -> Source | None:
    ranked = [(order, path) for path in files if (order := naming.rank(path.name, folder)) is not None]
    for order, path in sorted(ranked, key=lambda pair: (pair[0], pair[1].stat().st_size)):
        target = work / "checkpoint.pt"
        try:
            member = take_checkpoint(path, folder, target, flat=naming.is_named_after(path.name, folder))
        except ValueError as error:
            if order <= naming.NAMED:
                raise
            _logger.warning("%s=%s: passing over %s", VARIABLE, path.parent, error)
            continue
        if member:
            return _source(path, checkpoint=target, member=member)
    return None


def _only(found: list[Path], wanted: str) -> Source | None:
    if len(found) > 1:
        raise ValueError(f"expected one file for {wanted}, found {len(found)}: {', '.join(map(str, found[:5]))}")
    return _source(found[0]) if found else None


def _source(path: Path, *, checkpoint: Path | None = None, member: str | None = None) -> Source:
    return Source(checkpoint or path, asset=path.name, member=member, file=path)

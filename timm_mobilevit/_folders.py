"""Walk through folders and what links in them lead to."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk_files(root: Path, *, hidden: bool) -> Iterator[Path]:
    """Find all files below a folder; a folder that several links lead to, back to itself for example, is read once.

    Args:
        root: The folder; it may be hidden itself.
        hidden: Whether files and folders whose names begin with a dot count.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if hidden or name[0] != ".")
        yield from (Path(folder, name) for name in names if hidden or name[0] != ".")

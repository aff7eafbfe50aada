"""One checkpoint out of a zip archive that nobody vouches for.

Nothing is ever unpacked under a name that the archive chose: the one member that is wanted, if it is no larger than any
checkpoint could be, is copied into a file that the caller names.
"""

import errno
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from .remote import RemoteFile
from .transfer import MAX_BYTES

CHECKPOINT = "checkpoint_ema_best.pt"  # the file that the published accuracies were measured with
ARCHIVE = re.compile(r"\w[\w.-]{0,199}\.zip", re.IGNORECASE)  # names of files

# What the standard library raises on archives that are cut, damaged, encrypted or packed in a way it does not know.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class BrokenArchiveError(ValueError):
    """An archive that cannot be read."""


def take_checkpoint(archive: Path | RemoteFile, folder: str, target: Path) -> str | None:
    """Copy ``…/FOLDER/checkpoint_ema_best.pt`` out of an archive; returns its path there, None where it is not there.

    Raises:
        BrokenArchiveError: If the archive cannot be read.
        ValueError: If it holds the checkpoint several times, or declares it larger than ``MAX_BYTES``.
    """
    with _opened(archive) as (opened, checkpoints):
        found = [info for info in checkpoints if _folder(info) == folder]
        if len(found) > 1:
            paths = ", ".join(sorted(map(_path, found))[:5])
            raise ValueError(f"{archive.name}: expected one {CHECKPOINT} of {folder}, found {len(found)}: {paths}")
        for info in found:
            size = info.file_size
            if size > MAX_BYTES:
                raise ValueError(f"{archive.name}: {_path(info)} is {size} bytes large, expected at most {MAX_BYTES}")
            if isinstance(
                archive, RemoteFile
            ):  # one request for the header, whose length is not known, and the content
                archive.load(info.header_offset, info.header_offset + 4096 + info.compress_size)
            with opened.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)  # zipfile stops at the declared size, and raises before it
            return _path(info)
    return None


def folders(archive: Path) -> set[str]:
    """List the folders of an archive that hold an EMA-best checkpoint."""
    with _opened(archive) as (_, checkpoints):
        return {_folder(info) for info in checkpoints}


@contextmanager
def _opened(archive: Path | RemoteFile) -> Iterator[tuple[ZipFile, list[ZipInfo]]]:
    try:
        with ZipFile(archive) as opened:
            yield opened, [info for info in opened.infolist() if _is_wanted(info)]
    except _BROKEN as error:
        # Of the disk, not of what stands on it; a damaged zip makes Python look for places before the file's start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise BrokenArchiveError(f"{archive.name} is broken or no zip archive: {error}") from error


def _is_wanted(info: ZipInfo) -> bool:
    """Whether a member is an EMA-best checkpoint in a folder, and its path does not lead out of the archive."""
    path = _path(info)
    is_inside = path[0] != "/" and ".." not in path.split("/") and ":" not in path
    return path.endswith(f"/{CHECKPOINT}") and is_inside and not stat.S_ISLNK(info.external_attr >> 16)


def _path(info: ZipInfo) -> str:
    return info.filename.replace("\\", "/")


def _folder(info: ZipInfo) -> str:
    return _path(info).split("/")[-2]

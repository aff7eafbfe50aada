"""One checkpoint out of a zip or tar archive that nobody vouches for.

Nothing is ever unpacked under a name that the archive chose: the one member that is wanted, if it is no larger than any
checkpoint could be, is copied into a file that the caller names.
"""

import errno
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from .naming import select

MAX_BYTES = 1 << 30  # the largest MobileViT checkpoint is 74 MB
# What the standard library raises on archives that are cut, damaged, encrypted or packed in a way it does not know.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


@dataclass(frozen=True)
class _Member:
    path: str  # with forward slashes
    size: int  # as the archive declares it
    open: Callable[[], IO[bytes] | None]


def _is_safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts and ":" not in path


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
            yield _Member(info.filename.replace("\\", "/"), info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        if info.isreg() and not info.issparse():
            yield _Member(info.name, info.size, lambda info=info: archive.extractfile(info))  # type: ignore[misc]


@contextmanager
def _members(path: Path) -> Iterator[list[_Member]]:
    """Regular files of an archive, whatever its extension. Unsafe names are left out."""
    with path.open("rb") as file:
        # Not zipfile.is_zipfile, which looks at the end: a tar that ends with a checkpoint passes for a zip there.
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            yield [member for member in _zip_members(archive) if _is_safe(member.path)]
    else:
        with tarfile.open(path) as archive:
            yield [member for member in _tar_members(archive) if _is_safe(member.path)]


def take_checkpoint(archive: Path, folder: str, target: Path, *, flat: bool = False) -> str | None:
    """Copy a model's EMA-best checkpoint out of an archive.

    Args:
        archive: A zip, or a tar that may be compressed with gzip, bzip2 or xz.
        folder: Folder of the model in the release.
        target: File to write.
        flat: Also take a checkpoint that stands in no model's folder.

    Returns:
        The member's path in the archive, or None where the archive does not hold the model.

    Raises:
        ValueError: If the archive is broken, holds the checkpoint several times, or declares it larger than 1 GiB.
    """
    try:
        with _members(archive) as members:
            path = select((member.path for member in members), folder, flat=flat)
            if path is None:
                return None
            member = next(member for member in members if member.path == path)
            if member.size > MAX_BYTES:
                raise ValueError(f"{path} is {member.size} bytes large, expected at most {MAX_BYTES}")
            source = member.open()
            assert source is not None  # only of links and directories
            with source, target.open("wb") as file:
                # Both libraries stop at the declared size, and raise when there is less.
                shutil.copyfileobj(source, file)
            return path
    except ValueError as error:
        raise ValueError(f"{archive.name}: {error}") from error
    except _BROKEN as error:
        # Of the disk, not of what stands on it; a damaged zip makes Python look for places before the file's start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{archive.name} is broken or no zip or tar archive: {error}") from error


def zip_directory(tail: bytes) -> list[str] | None:
    """List the paths in a zip archive of which only the end is at hand.

    Args:
        tail: Last bytes of the archive.

    Returns:
        The paths, with forward slashes, or None where the end does not reach back to the start of the directory.
    """
    try:
        # The directory is found from the end of the file; where its entries point to is not looked at.
        with zipfile.ZipFile(io.BytesIO(tail)) as archive:
            return [info.filename.replace("\\", "/") for info in archive.infolist()]
    except _BROKEN:
        return None

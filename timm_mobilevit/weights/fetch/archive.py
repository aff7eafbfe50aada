"""One checkpoint out of a zip or tar archive that nobody vouches for.

Nothing is ever unpacked under a name that the archive chose: the one member that is wanted, if it is no larger than any
checkpoint could be, is copied into a file that the caller names.
"""

import errno
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TypeAlias

from .remote import RemoteFile
from .transfer import MAX_BYTES

CHECKPOINT = "checkpoint_ema_best.pt"  # the file that the published accuracies were measured with
ARCHIVE = re.compile(r"[\w.-]{1,200}\.(zip|tar(\.(gz|bz2|xz))?|tgz|tbz2?|txz)", re.IGNORECASE)  # names of files

# What the standard library raises on archives that are cut, damaged, encrypted or packed in a way it does not know.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
_Member: TypeAlias = tuple[str, int, Callable[[], IO[bytes] | None]]  # path, declared size, what opens it


class BrokenArchiveError(ValueError):
    """An archive that cannot be read."""


def take_checkpoint(archive: Path | RemoteFile, folder: str, target: Path) -> str | None:
    """Copy ``…/FOLDER/checkpoint_ema_best.pt`` out of an archive; returns its path there, None where it is not there.

    Raises:
        BrokenArchiveError: If the archive cannot be read.
        ValueError: If it holds the checkpoint several times, or declares it larger than ``MAX_BYTES``.
    """
    with _checkpoints(archive) as members:
        found = [member for member in members if _folder(member) == folder]
        if len(found) > 1:
            paths = ", ".join(sorted(path for path, *_ in found)[:5])
            raise ValueError(f"{archive.name}: expected one {CHECKPOINT} of {folder}, found {len(found)}: {paths}")
        for path, size, open_member in found:
            if size > MAX_BYTES:
                raise ValueError(f"{archive.name}: {path} is {size} bytes large, expected at most {MAX_BYTES}")
            source = open_member()
            assert source is not None  # only of links and directories
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file)  # both libraries stop at the declared size, and raise before it
            return path
    return None


def folders(archive: Path) -> set[str]:
    """List the folders of an archive that hold an EMA-best checkpoint."""
    with _checkpoints(archive) as members:
        return {_folder(member) for member in members}


@contextmanager
def _checkpoints(archive: Path | RemoteFile) -> Iterator[list[_Member]]:
    try:
        if isinstance(archive, RemoteFile) or not tarfile.is_tarfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield [
                    (path, info.file_size, partial(_open, opened, info, archive))
                    for info in opened.infolist()
                    if _is_wanted(path := info.filename.replace("\\", "/"))
                    and not stat.S_ISLNK(info.external_attr >> 16)
                ]
        else:
            with tarfile.open(archive) as tar:
                yield [
                    (info.name, info.size, partial(tar.extractfile, info))
                    for info in tar
                    if _is_wanted(info.name) and info.isreg() and not info.issparse()
                ]
    except _BROKEN as error:
        # Of the disk, not of what stands on it; a damaged zip makes Python look for places before the file's start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise BrokenArchiveError(f"{archive.name} is broken or no zip or tar archive: {error}") from error


def _is_wanted(path: str) -> bool:
    """Whether a path is that of an EMA-best checkpoint in a folder, and does not lead out of the archive."""
    return path.endswith(f"/{CHECKPOINT}") and path[0] != "/" and ".." not in path.split("/") and ":" not in path


def _folder(member: _Member) -> str:
    return member[0].split("/")[-2]


def _open(opened: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path | RemoteFile) -> IO[bytes]:
    if isinstance(archive, RemoteFile):  # one request for the header, whose length is not known, and the content
        archive.load(info.header_offset, info.header_offset + 4096 + info.compress_size)
    return opened.open(info)

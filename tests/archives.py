"""Archives in memory, one packer per format."""

import io
import tarfile
import zipfile
from collections.abc import Callable


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str, **fast: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **fast) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": lambda files: tarred(files, "w"),
    "tar.gz": lambda files: tarred(files, "w:gz", compresslevel=1),
    "tar.bz2": lambda files: tarred(files, "w:bz2", compresslevel=1),
    "tar.xz": lambda files: tarred(files, "w:xz", preset=0),
}

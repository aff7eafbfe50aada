"""A file on a server that is read in pieces."""

import io
from pathlib import Path

from .transfer import MAX_BYTES, download

_TAIL_BYTES = 1 << 18  # of a zip: enough for the directory of 2,000 files


class RemoteFile:
    """A file on a server, as ``zipfile`` reads files. Only absolute ranges of bytes are requested.

    Suffix ranges (``bytes=-100``) need no size, but not every server behind GitHub's releases knows them: see
    https://github.com/pypi/warehouse/issues/12823. Everything raises OSError if the server does not give ranges.
    """

    def __init__(self, url: str, size: int, work: Path):
        self.name = url.rpartition("/")[2]
        self._url, self._size, self._piece = url, size, work / "piece"
        self._position, self._start, self._loaded = 0, 0, b""
        self.load(size - _TAIL_BYTES, size)

    def load(self, start: int, stop: int) -> None:
        """Get the bytes from ``start`` to ``stop`` in one request, or in none if they are there already."""
        start, stop = max(0, start), min(stop, self._size)
        if start < self._start or stop > self._start + len(self._loaded):
            if not 0 < stop - start <= MAX_BYTES:
                raise OSError(f"expected a range of at most {MAX_BYTES} bytes, got {start} to {stop}")
            download(self._url, self._piece, span=(start, stop), size=self._size)
            self._start, self._loaded = start, self._piece.read_bytes()
            self._piece.unlink()

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def read(self, count: int = -1) -> bytes:  # noqa: D102
        start, stop = self._position, self._size if count < 0 else min(self._position + count, self._size)
        if stop <= start:
            return b""
        self.load(start, stop)
        self._position = stop
        return self._loaded[start - self._start : stop - self._start]

"""Downloads that survive stalls and cuts.

``urllib`` because it is always there: the HTTP client that huggingface_hub brings changes with its major versions.
"""

import logging
import re
import ssl
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import sleep
from typing import IO, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from ..._version import __version__

MAX_BYTES = 1 << 28  # of a checkpoint, and of a file whose size nobody stated; MobileViT's largest has 74 MB

_logger = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5  # in a row without a new megabyte
_MAX_WAIT = 60.0  # seconds; a server that asks for more is given up
_CHUNK = 1 << 20


class _Part:
    """What has arrived, and the version of the file that it belongs to: the rest of another is never added to it."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.validator = ""  # empty where the server names no version: then the download cannot be resumed

    def restart(self, validator: str = "") -> None:
        self.file.seek(0)
        self.file.truncate()
        self.validator = validator


def download(
    url: str,
    target: Path,
    *,
    span: tuple[int, int] | None = None,
    size: int | None = None,
    most: int = MAX_BYTES,
    token: str | None = None,
) -> None:
    """Stream a file to disk, with a progress bar, and resume where the connection stalls or is cut.

    Args:
        url: Address of the file.
        target: File to write; it does not stay when the download fails.
        span: First byte that is wanted and the byte after the last; without it, the whole file.
        size: Size in bytes that the file must have; without it, any up to ``most``.
        most: Largest size in bytes where ``size`` is not given.
        token: Bearer token. Sent to this address only, not to where it redirects.

    Raises:
        OSError: If it cannot be downloaded, has another size, or the server only gives whole files where a span is
            wanted.
    """
    try:
        with target.open("wb") as file:
            _persist(url, _Part(file), span, size, most, token)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _persist(
    url: str, part: _Part, span: tuple[int, int] | None, size: int | None, most: int, token: str | None
) -> None:
    failures, reached = 0, 0
    while True:
        try:
            return _continue(url, part, span, size, most, token)
        except (OSError, HTTPException) as error:
            if part.file.tell() >= reached + _CHUNK:
                failures, reached = 0, part.file.tell()
            failures += 1
            if isinstance(error, HTTPError):
                error.close()
                if error.code == 416 and part.file.tell():  # longer than the file itself: start again
                    part.restart()
                    error = ConnectionError("the server cannot continue the download")
            wait = _wait(error, failures)
            if wait is None or failures >= _ATTEMPTS:
                reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
                raise OSError(f"{url}: {reason or type(error).__name__}") from error
            _logger.info("%s: %s; trying again in %.0f s", url, error, wait)
            sleep(wait)


def _continue(
    url: str, part: _Part, span: tuple[int, int] | None, size: int | None, most: int, token: str | None
) -> None:
    first, stop = span or (0, size)
    have = part.file.tell() if part.validator else 0
    headers = {"Range": f"bytes={first + have}-{'' if stop is None else stop - 1}"} if span or have else {}
    with _open(url, headers | ({"If-Range": part.validator} if have else {}), token) as response:
        length = response.headers.get("Content-Length", "")
        offered = int(length) if re.fullmatch(r"\d{1,19}", length) else None  # size of the whole file
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d{1,19})-\d+/(\d{1,19}|\*)", response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != first + have:
                part.restart()
                raise ConnectionError("the server sent another part of the file")
            offered = int(match[2]) if match[2].isdecimal() else None
        elif span:
            raise OSError("expected a part of the file, the server only gives whole files")
        else:  # the file has changed, or the server only gives whole files
            have = 0
        most = most if size is None else size
        expected = f"expected {'at most ' if size is None else ''}{most} bytes"
        if offered is not None and (offered > most or offered < (size or 0)):
            raise OSError(f"{expected}, the server offers {offered}")
        most = span[1] - span[0] if span else most
        total = offered if size is None else most
        got = have
        if not have:
            part.restart(_validator(response))
        bar = tqdm(desc=url.rpartition("/")[2], total=total, initial=have, unit="B", unit_scale=True, disable=None)  # type: ignore[no-untyped-call]
        with bar:
            # read1 gives what is there: a chunk that a stall or a cut leaves incomplete is not lost. One byte too many
            # tells that there are more.
            while got != total and got <= most and (chunk := response.read1(min(_CHUNK, max(1, most - got)))):
                got += part.file.write(chunk)
                bar.update(len(chunk))
    if total is not None and got < total:
        raise ConnectionError(f"the connection was cut after {got} of {total} bytes")
    if got > most:
        raise OSError(f"{expected}, got more")


def _validator(response: HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    # A weak ETag only promises equal meaning, not equal bytes.
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return validator if validator.isprintable() else ""  # a header with a line break in it could not be sent back


def _open(url: str, headers: dict[str, str], token: str | None) -> HTTPResponse:
    if not url.startswith(("https://", "http://")):
        raise URLError(f"expected an http address, got {url!r}")
    request = Request(url, headers={"User-Agent": f"timm-mobilevit/{__version__}", **headers})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return cast(HTTPResponse, urlopen(request, timeout=_TIMEOUT))


def _wait(error: Exception, failures: int) -> float | None:
    """Seconds to wait before the next attempt; None where another one is of no use."""
    wait = 2.0 ** (failures - 1)
    if isinstance(error, HTTPError):
        asked = error.headers.get("Retry-After", "").strip()  # or a date, which is not looked at
        wait = max(wait, float(asked) if asked.isdecimal() else 0)
        return wait if error.code in (408, 429, 500, 502, 503, 504) and wait <= _MAX_WAIT else None
    reason = error.reason if isinstance(error, URLError) else error
    # No such host, no route, nobody listening: mostly no network at all, which the user wants to hear at once. What is
    # left of OSError comes from the disk.
    is_transient = isinstance(reason, (HTTPException, ConnectionError, TimeoutError, ssl.SSLError)) and not isinstance(
        reason, (ConnectionRefusedError, ssl.SSLCertVerificationError)
    )
    return wait if is_transient else None

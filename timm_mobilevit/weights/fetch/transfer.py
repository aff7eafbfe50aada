"""Downloads that survive stalls, cuts and restarts.

``urllib`` because it is always there: the HTTP client that huggingface_hub brings changes with its major versions.
"""

import json
import logging
import re
import ssl
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import sleep
from typing import cast
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


def download(
    url: str,
    part: Path,
    *,
    span: tuple[int, int] | None = None,
    size: int | None = None,
    most: int = MAX_BYTES,
    token: str | None = None,
) -> None:
    """Stream a file to disk, with a progress bar, and go on where an earlier call was cut off.

    What has arrived stays in ``part`` when the download fails. A note beside it (``part.json``) says which version of
    the file it is a part of: the rest of another version is never added to it.

    Args:
        url: Address of the file.
        part: File to write or complete.
        span: First byte that is wanted and the byte after the last; without it, the whole file.
        size: Size in bytes that the file must have; without it, any up to ``most``.
        most: Largest size in bytes where ``size`` is not given.
        token: Bearer token. Sent to this address only, not to where it redirects.

    Raises:
        OSError: If it cannot be downloaded, has another size, or the server only gives whole files where a span is
            wanted.
    """
    failures, reached = 0, _size_of(part)
    while True:
        try:
            _continue(url, part, span, size, most, token)
            return _note(part).unlink()
        except (OSError, HTTPException) as error:
            if _size_of(part) >= reached + _CHUNK:
                failures, reached = 0, _size_of(part)
            failures += 1
            if isinstance(error, HTTPError):
                error.close()
                if error.code == 416 and _size_of(part):  # longer than the file itself: start again
                    discard(part)
                    error = ConnectionError("the server cannot continue the download")
            wait = _wait(error, failures)
            if wait is None or failures >= _ATTEMPTS:
                reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
                raise OSError(f"{url}: {reason or type(error).__name__}") from error
            _logger.info("%s: %s; trying again in %.0f s", url, error, wait)
            sleep(wait)


def discard(part: Path) -> None:
    """Delete what has arrived of a download."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _continue(
    url: str, part: Path, span: tuple[int, int] | None, size: int | None, most: int, token: str | None
) -> None:
    first, stop = span or (0, size)
    have, validator = _resume_point(part, url, first)
    headers = {"Range": f"bytes={first + have}-{'' if stop is None else stop - 1}"} if span or have else {}
    with _open(url, headers | ({"If-Range": validator} if have else {}), token) as response:
        length = response.headers.get("Content-Length", "")
        offered = int(length) if re.fullmatch(r"\d{1,19}", length) else None  # size of the whole file
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d{1,19})-\d+/(\d{1,19}|\*)", response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != first + have:
                discard(part)
                raise ConnectionError("the server sent another part of the file")
            offered = int(match[2]) if match[2].isdecimal() else None
        elif span:
            raise OSError("expected a part of the file, the server only gives whole files")
        else:  # the file has changed, or the server only gives whole files
            have = 0
        most = most if size is None else size
        expected = f"expected {'at most ' if size is None else ''}{most} bytes"
        if offered is not None and (offered > most or offered < (size or 0)):
            discard(part)
            raise OSError(f"{expected}, the server offers {offered}")
        most = span[1] - span[0] if span else most
        total = offered if size is None else most
        got = have
        if not have:
            part.unlink(missing_ok=True)
            _note(part).write_text(json.dumps([url, first, _validator(response)]))
        bar = tqdm(desc=url.rpartition("/")[2], total=total, initial=have, unit="B", unit_scale=True, disable=None)  # type: ignore[no-untyped-call]
        with part.open("ab") as file, bar:
            # read1 gives what is there: a chunk that a stall or a cut leaves incomplete is not lost. One byte too many
            # tells that there are more.
            while got != total and got <= most and (chunk := response.read1(min(_CHUNK, max(1, most - got)))):
                got += file.write(chunk)
                bar.update(len(chunk))
    if total is not None and got < total:
        raise ConnectionError(f"the connection was cut after {got} of {total} bytes")
    if got > most:
        discard(part)
        raise OSError(f"{expected}, got more")


def _size_of(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resume_point(part: Path, url: str, first: int) -> tuple[int, str]:
    """Bytes at hand and the validator of the version they belong to; 0 where they cannot be built upon."""
    try:
        *version, validator = json.loads(_note(part).read_text())
        if version == [url, first] and validator and validator.isprintable():
            return part.stat().st_size, validator
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    return 0, ""


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

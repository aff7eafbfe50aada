"""Downloads that survive stalls, cuts and restarts.

``urllib`` because it is always there: the HTTP client that huggingface_hub brings changes with its major versions.
"""

import json
import logging
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import sleep, time
from typing import Any, TypeVar, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from ..._version import __version__

T = TypeVar("T")
_logger = logging.getLogger(__name__)

_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5  # in a row without a new megabyte
_MAX_WAIT = 60.0  # seconds; a server that asks for more is given up
_CHUNK = 1 << 20
_MAX_BYTES = 1 << 30  # of a file whose size nobody stated; the largest MobileViT checkpoint is 74 MB
_MAX_JSON = 1 << 24
_RETRY_STATUS = {408, 429, 500, 502, 503, 504}


def fetch_json(url: str, *, token: str | None = None) -> Any:
    """Read a JSON document.

    Args:
        url: Address of the document.
        token: Bearer token. Sent to this address only, not to where it redirects.

    Raises:
        OSError: If it cannot be had.
        ValueError: If it is not JSON, or larger than 16 MiB.
    """

    def attempt() -> bytes:
        with _open(url, {"Accept": "application/json"}, token) as response:
            content = response.read(_MAX_JSON + 1)
            if response.length and len(content) <= _MAX_JSON:
                raise ConnectionError(f"the connection was cut {response.length} bytes before the end")
            return content

    content = _retry(url, attempt)
    if len(content) > _MAX_JSON:
        raise ValueError(f"{url}: expected at most {_MAX_JSON} bytes of JSON")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{url}: nested too deeply") from error


def fetch_tail(url: str, size: int) -> bytes | None:
    """Read the last bytes of a file, or nothing at all where the server only gives whole files.

    Args:
        url: Address of the file.
        size: Number of bytes.

    Raises:
        OSError: If it cannot be had.
    """

    def attempt() -> bytes | None:
        with _open(url, {"Range": f"bytes=-{size}"}) as response:
            return response.read(size) if response.status == 206 else None

    return _retry(url, attempt)


def download(url: str, part: Path, *, size: int | None = None) -> None:
    """Stream a file to disk, with a progress bar, and goes on where an earlier call was cut off.

    What has arrived stays in ``part`` when the download fails. A note beside it (``part.json``) says which version of
    the file it is a part of: the rest of another version is never added to it.

    Args:
        url: Address of the file.
        part: File to write or complete.
        size: Size in bytes that the file must have; without it, any up to 1 GiB.

    Raises:
        OSError: If it cannot be had, or has another size.
    """
    _retry(url, lambda: _continue(url, part, size), lambda: part.stat().st_size if part.exists() else 0)
    _note(part).unlink()


def _continue(url: str, part: Path, size: int | None) -> None:
    have, validator = _resume_point(url, part)
    try:
        response = _open(url, {"Range": f"bytes={have}-", "If-Range": validator} if have else {})
    except HTTPError as error:
        if error.code != 416:
            raise
        discard(part)  # longer than the file itself: start again
        raise ConnectionError("the server cannot continue the download") from error
    with response:
        if response.status == 206:
            start, total = _content_range(response)
        else:  # the file has changed, or the server only gives whole files
            start, total = 0, _content_length(response)
            have = 0
        if start != have:
            discard(part)
            raise ConnectionError(f"the server continued at byte {start} instead of {have}")
        if size is not None and total not in (-1, size):
            discard(part)
            raise OSError(f"expected {size} bytes, the server offers {total}")
        most = _MAX_BYTES if size is None else size
        if total > most:
            discard(part)
            raise OSError(f"expected at most {most} bytes, the server offers {total}")
        got = have
        with part.open("ab" if have else "wb") as file:
            if not have:
                _note(part).write_text(json.dumps({"url": url, "validator": _validator(response)}))
            with tqdm(  # type: ignore[no-untyped-call]
                desc=url.rpartition("/")[2],
                total=total if total >= 0 else None,
                initial=have,
                unit="B",
                unit_scale=True,
                disable=None,  # where the output is not a terminal
            ) as bar:
                # read1 gives what is there: a chunk that a stall or a cut leaves incomplete is not lost.
                while got != total and got <= most and (chunk := response.read1(_CHUNK)):
                    got += file.write(chunk)
                    bar.update(len(chunk))
    if got < total:
        raise ConnectionError(f"the connection was cut after {got} of {total} bytes")
    if got > most or (size is not None and got != size):
        discard(part)
        raise OSError(f"expected {'at most ' if size is None else ''}{most} bytes, got {'more' if got > most else got}")


def discard(part: Path) -> None:
    """Delete what has arrived of a download."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resume_point(url: str, part: Path) -> tuple[int, str]:
    """Bytes at hand and the validator of the version they belong to; 0 where they cannot be built upon."""
    try:
        note = json.loads(_note(part).read_text())
        if note["url"] == url and note["validator"] and note["validator"].isprintable():
            return part.stat().st_size, note["validator"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return 0, ""


def _validator(response: HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    # A weak ETag only promises equal meaning, not equal bytes.
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return validator if validator.isprintable() else ""  # a header with a line break in it could not be sent back


def _content_length(response: HTTPResponse) -> int:
    """Size that the server declares, or -1."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else -1


def _content_range(response: HTTPResponse) -> tuple[int, int]:
    """First byte of a partial answer, and the size of the whole file or -1."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    try:
        return int(span.partition("-")[0]), -1 if total == "*" else int(total)
    except ValueError:
        return -1, -1


def _open(url: str, headers: dict[str, str], token: str | None = None) -> HTTPResponse:
    if not url.startswith(("https://", "http://")):
        raise URLError(f"expected an http address, got {url!r}")
    request = Request(url, headers={"User-Agent": f"timm-mobilevit/{__version__}", **headers})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return cast(HTTPResponse, urlopen(request, timeout=_TIMEOUT))


def _retry(url: str, attempt: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
    """Call ``attempt`` until it succeeds, fails for good, or has failed too often without making progress."""
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except (OSError, HTTPException) as error:
            if progress() >= reached + _CHUNK:
                failures, reached = 0, progress()
            failures += 1
            if isinstance(error, HTTPError):
                error.close()
            wait = _wait(error, failures)
            if wait is None or failures >= _ATTEMPTS:
                reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
                raise OSError(f"{url}: {reason or type(error).__name__}") from error
            _logger.info("%s: %s; trying again in %.0f s", url, error, wait)
            sleep(wait)


def _wait(error: Exception, failures: int) -> float | None:
    """Seconds to wait before the next attempt; None where another one is of no use."""
    wait = float(2 ** (failures - 1))
    if isinstance(error, HTTPError):
        if error.code not in _RETRY_STATUS:
            return None
        wait = max(wait, _retry_after(error.headers.get("Retry-After", "")))
        return wait if wait <= _MAX_WAIT else None
    reason = error.reason if isinstance(error, URLError) else error
    # No such host, no route, nobody listening: mostly no network at all, which the user wants to hear at once. What is
    # left of OSError comes from the disk.
    is_transient = isinstance(reason, (HTTPException, ConnectionError, TimeoutError, ssl.SSLError)) and not isinstance(
        reason, (ConnectionRefusedError, ssl.SSLCertVerificationError)
    )
    return wait if is_transient else None


def _retry_after(value: str) -> float:
    """Seconds from a Retry-After header, which holds a number or a date; 0 where it holds neither."""
    try:
        return float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time()
    except (TypeError, ValueError, OverflowError):
        return 0.0

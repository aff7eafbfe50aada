"""Servers that stall, cut, lie and flood: the download is resumed, or ends in an error that says how to go on."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archives import PACKERS, zipped
from fetched import APPLE_ROW, MEMBER, MICRON, MODELS, assert_nothing_left, assert_weights, models, unavailable
from servers import RELEASE, Fault, Server

from timm_mobilevit.weights.fetch import fetch_weights, transfer
from timm_mobilevit.weights.fetch.archive import CHECKPOINT, take_checkpoint
from timm_mobilevit.weights.pretrained import WEIGHTS

ARCHIVED = "mobilevitv3_S_e300_7930"
ARCHIVED_MEMBER = f"{ARCHIVED}/{CHECKPOINT}"
WHOLE = Fault(status=501)  # of the request for the archive's directory: then the archive is downloaded
OK = b"HTTP/1.0 200 OK\r\n"


def test_a_server_that_never_answers(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "_TIMEOUT", 0.1)
    server.add(RELEASE, b"", faults=[Fault(raw=b"", stall=1.0)] * 5)
    assert "timed out" in unavailable(tmp_path)
    assert len(server.requests) == 5


@pytest.mark.parametrize("whole", [False, True])
def test_a_stall_in_the_middle_is_resumed(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch, whole: bool
):
    monkeypatch.setattr(transfer, "_TIMEOUT", 0.2)
    content = models(checkpoint)
    server.release({"models.zip": content})
    stalls = [Fault(cut_after=len(checkpoint) // 3, stall=1.0)] * 2
    server.asset("models.zip").faults = [WHOLE if whole else Fault(), *stalls]
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    # Not a byte twice: the directory with what stands before it, the checkpoint; or everything.
    assert sum(server.sent(MODELS)) <= (len(content) if whole else len(checkpoint) + 4096 + (1 << 18) + 200)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.0 999 What\r\n\r\n",
        OK + b"x: y\r\n" * 200 + b"\r\n",
        OK + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nnot a number\r\n",
        OK + b"Content-Length: many\r\n\r\nweights",
        OK + b"Content-Length: -7\r\n\r\nweights",
        OK + b"Content-Length: 10000000000000\r\n\r\nweights",
        OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8bweights",
        b"HTTP/1.0 204 No Content\r\n\r\n",
        b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 0-6/*\r\n\r\nweights",
        b"HTTP/1.0 206 Partial Content\r\nContent-Range: lines 1-2\r\n\r\nweights",
        b"HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: ftp://127.0.0.1:9/weights\r\n\r\n",
        b"HTTP/1.0 302 Found\r\n\r\n",
        b"HTTP/1.0 429 Slow down\r\nRetry-After: Mon, 01 Jan 0001 00:00:00 -0000\r\n\r\n",
        b"HTTP/1.0 429 Slow down\r\nRetry-After: " + b"9" * 400 + b"\r\n\r\n",
    ],
    ids=lambda head: repr(head[:60]),
)
@pytest.mark.parametrize("name", [MICRON, APPLE_ROW])
def test_answers_that_make_no_sense(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch, head: bytes, name: str
):
    """In place of the file: Micron's size is known from the release, Apple's is not."""
    if name == MICRON:
        server.release({"models.zip": models(checkpoint)})
        server.asset("models.zip").faults = [Fault(raw=head)] * 10
    else:
        url = server.add("/mobilevitv2-0.5.pt", b"", faults=[Fault(raw=head)] * 10)
        monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], url=url))
    assert len(unavailable(tmp_path, name)) < 2000
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loop_of_redirects(server: Server, tmp_path: Path):
    server.add(RELEASE, b"", faults=[Fault(status=302, headers={"Location": RELEASE})] * 99)
    assert "redirect" in unavailable(tmp_path)
    assert len(server.requests) < 20


@pytest.mark.parametrize("name", [MICRON, APPLE_ROW])
def test_a_body_without_end_is_given_up(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch, name: str
):
    flood = Fault(raw=OK + b"\r\n", endless=True)
    if name == MICRON:
        server.release({"models.zip": models(checkpoint)})
        server.asset("models.zip").faults = [flood] * 2  # to the request for its directory, and for the whole
    else:
        url = server.add("/mobilevitv2-0.5.pt", b"", faults=[flood])
        monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], url=url))
    # Of Micron's, whose size is stated, no more is read: zeros, which hold no model.
    assert ("no archive of" if name == MICRON else "got more") in unavailable(tmp_path, name)
    assert_nothing_left(tmp_path)
    expected = len(models(checkpoint)) if name == MICRON else transfer.MAX_BYTES
    assert server.requests[-1].sent < expected + 50_000_000  # what the buffers on the way hold


def test_a_release_without_end_is_given_up(server: Server, tmp_path: Path):
    server.add(RELEASE, b"", faults=[Fault(raw=OK + b"\r\n", endless=True)])
    assert "expected at most 16777216 bytes, got more" in unavailable(tmp_path)
    assert server.requests[0].sent < 60_000_000


def test_a_release_that_is_cut_is_asked_for_again(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)})
    server.files[RELEASE].faults = [Fault(cut_after=20)] * 2
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


@pytest.mark.parametrize(
    "asset",
    [
        {"name": 7},
        {"name": None},
        {"name": "x" * 300 + ".zip"},
        {"name": "../../models.zip", "browser_download_url": "file:///etc/hostname"},
        {"name": "models\0.zip"},
        {"name": "models\ud800.zip"},
        {"browser_download_url": None},
        {"browser_download_url": "file:///etc/hostname"},
        {"browser_download_url": ["http://127.0.0.1:9"]},
        {"browser_download_url": "http://[::1"},
        {"browser_download_url": "http://127.0.0.1:9\r\nHost: elsewhere"},
        {"size": -1},
        {"size": 0},
        {"size": 1},
        {"size": 10**18},
        {"size": "large"},
        {"size": float("inf")},
        {"digest": 7},
        {"digest": "sha256:"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("whole", [False, True])
def test_releases_that_make_no_sense(
    server: Server, tmp_path: Path, checkpoint: bytes, asset: dict[str, object], whole: bool
):
    url = server.add(MODELS, models(checkpoint), ranges=not whole)
    good = {"name": "models.zip", "browser_download_url": url, "size": len(models(checkpoint))}
    server.add(RELEASE, json.dumps({"assets": [good | asset]}).encode())
    # A checksum that we do not know, or cannot verify on a part.
    if asset == {"digest": 7} or (asset == {"digest": "sha256:"} and not whole):
        assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    else:
        unavailable(tmp_path)
        assert_nothing_left(tmp_path)


def test_a_release_that_is_nested_deeply(server: Server, tmp_path: Path):
    server.add(RELEASE, b"[" * 200_000)
    unavailable(tmp_path)


def test_a_validator_that_cannot_be_sent_back(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)})
    content = models(checkpoint)
    head = OK + b'ETag: "a\r\n b"\r\nContent-Length: %d\r\n\r\n' % len(content)
    server.asset("models.zip").faults = [WHOLE, Fault(raw=head + content[:1000])]
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


CHILD = """
import sys
from timm_mobilevit.weights.fetch import fetch_weights
print(fetch_weights(*sys.argv[1:]))
"""


def test_a_process_that_is_killed_leaves_nothing_that_stays(server: Server, tmp_path: Path, checkpoint: bytes):
    content = models(checkpoint)
    server.release({"models.zip": content})
    server.asset("models.zip").faults = [WHOLE, Fault(cut_after=len(content) // 2, stall=60.0)]
    child = subprocess.Popen([sys.executable, "-c", CHILD, MICRON, tmp_path], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("*models.zip")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert list(tmp_path.rglob("*models.zip"))
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert not list(tmp_path.rglob("*models.zip"))


# ---------------------------------------------------------------------------------- archives that lie about themselves


def central(content: bytes, offset: int, value: int) -> bytes:
    """Overwrite four bytes of the checkpoint's entry in a zip's directory."""
    at = content.index(b"PK\1\2") + offset
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (20, 1 << 31),  # size in the archive: the request is for no more than there is
        (20, 10),
        (24, (1 << 28) + 1),  # size of the checkpoint
        (24, 10),
        (16, 0),  # CRC-32
        (42, 0xFFFFFFF0),  # where it stands
        (42, 7),
    ],
    ids=["packed size", "small packed size", "size", "small size", "checksum", "place", "other place"],
)
def test_a_directory_that_lies(server: Server, tmp_path: Path, checkpoint: bytes, offset: int, value: int):
    content = central(models(checkpoint), offset, value)
    server.release({"models.zip": content})
    message = unavailable(tmp_path)
    assert "models.zip" in message
    assert_nothing_left(tmp_path)
    assert sum(server.sent(MODELS)) < 3 * len(content)


def test_a_bomb(server: Server, tmp_path: Path):
    """It unpacks to a thousand times its size, and is no checkpoint."""
    server.release({"models.zip": zipped({MEMBER: bytes(50_000_000)})})
    assert "damaged" in unavailable(tmp_path)
    server.release({"models.zip": zipped({MEMBER: bytes(transfer.MAX_BYTES + 1)})})
    assert "expected at most 268435456" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("kind", PACKERS)
def test_archives_with_flipped_bits(kind: str, tmp_path: Path):
    """Each gives the checkpoint, nothing, or an error that names the archive."""
    draw, weights = random.Random(0), random.Random(1).randbytes(20_000)
    content = PACKERS[kind]({"notes.txt": b"x" * 3000, ARCHIVED_MEMBER: weights})
    archive, target = tmp_path / f"asset.{kind}", tmp_path / "target"
    complaints = []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            # Two thirds of them in the headers, which are at the start and, of a zip, at the end.
            at = draw.choice([draw.randrange(len(content)), draw.randrange(600), -1 - draw.randrange(400)])
            damaged[at] ^= 1 << draw.randrange(8)
        archive.write_bytes(damaged)
        try:
            take_checkpoint(archive, ARCHIVED, target)
        except ValueError as error:
            complaints.append(str(error))
        assert {file.name for file in tmp_path.iterdir()} <= {archive.name, target.name}
    assert len(complaints) > 20
    assert all(archive.name in complaint for complaint in complaints)

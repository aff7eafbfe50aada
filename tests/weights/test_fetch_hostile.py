"""Servers that stall, cut, lie and flood, and archives that lie about themselves: the download is resumed, or ends in
an error that says how to go on, and leaves nothing."""

import dataclasses
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from archives import zipped
from fetched import (
    APPLE_ROW,
    FOLDER,
    MEMBER,
    MICRON,
    assert_nothing_left,
    assert_weights,
    converted,
    models,
    read,
    unavailable,
)
from huggingface_hub import constants
from safetensors.torch import load_file
from servers import MODELS, Fault, File, Server

from timm_mobilevit.weights import fetch
from timm_mobilevit.weights.fetch import CHECKPOINT, fetch_weights
from timm_mobilevit.weights.pretrained import WEIGHTS

OK = b"HTTP/1.0 200 OK\r\n"
PART = b"HTTP/1.0 206 Partial Content\r\n"


@pytest.fixture(params=[MICRON, APPLE_ROW])
def name(request: pytest.FixtureRequest) -> str:
    """Weights that are a part of an archive, and weights that are a file."""
    return request.param


@pytest.fixture
def served(server: Server, name: str, checkpoints: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch) -> File:
    """The file on the server that holds the weights; its faults begin with the request for the checkpoint."""
    content = checkpoints(name.partition(".")[0])
    if name == MICRON:
        server.add(MODELS, models(content), faults=[Fault(), Fault()])  # its size and its directory
        return server.files[MODELS]
    url = server.add("/mobilevitv2-0.5.pt", content)
    monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], url=url))
    return server.files["/mobilevitv2-0.5.pt"]


@pytest.fixture
def weights(name: str, checkpoints: Callable[[str], bytes]) -> bytes:
    return checkpoints(name.partition(".")[0])


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_a_download_that_is_cut_or_stalls_goes_on(
    server: Server,
    served: File,
    name: str,
    weights: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stall: float,
):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    served.faults += [Fault(cut_after=len(weights) // 3, stall=stall)] * 2
    assert_weights(fetch_weights(name, tmp_path), weights, name)
    first, second, third = (request.sent for request in server.requests[-3:])
    assert first == second == len(weights) // 3
    assert third < len(weights) // 2


def test_a_download_that_is_always_cut_is_given_up(
    server: Server, served: File, name: str, weights: bytes, tmp_path: Path
):
    served.faults += [Fault(cut_after=1000)] * 99
    assert f"tried: {server.url}" in unavailable(tmp_path, name)
    assert len(server.requests) < 10
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("name", [APPLE_ROW], indirect=True)
def test_a_server_without_ranges_begins_again(
    server: Server, served: File, name: str, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    served.ranges, served.faults = False, [Fault(cut_after=len(weights) // 2)]
    path = fetch_weights(name, tmp_path)
    # Not the record: huggingface_hub before 1.5 leaves what came first before the file, where readers of zip skip it.
    expected = converted(weights, name.partition(".")[0], WEIGHTS[name].channel_order)
    assert all(torch.equal(value, expected[key]) for key, value in load_file(path).items())
    assert [request.sent for request in server.requests] == [len(weights) // 2, len(weights)]


@pytest.mark.parametrize("given", [1, 2])
def test_a_server_that_stops_to_give_ranges(server: Server, checkpoint: bytes, tmp_path: Path, given: int):
    content = zipped({"padding": os.urandom(1 << 20), MEMBER: checkpoint})
    server.add(MODELS, content, faults=[*[Fault()] * given, Fault(raw=OK + b"\r\n" + content)])
    assert "got more" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


def test_a_server_that_sends_another_range(server: Server, checkpoint: bytes, tmp_path: Path):
    content = models(checkpoint)
    size = len(checkpoint) + 4096
    zeros = PART + b"Content-Range: bytes 0-%d/%d\r\n\r\n" % (size - 1, len(content)) + bytes(size)
    server.add(MODELS, content, faults=[Fault(), Fault(), Fault(raw=zeros), Fault(raw=zeros)])
    assert "models.zip" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


def test_a_server_that_never_answers(
    server: Server, served: File, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    served.faults = [Fault(raw=b"", stall=1.0)] * 9
    assert "timed out" in unavailable(tmp_path, name)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("name", "step"), [(APPLE_ROW, 0), *((MICRON, step) for step in range(3))], indirect=["name"])
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
        PART + b"Content-Range: bytes 0-6/*\r\n\r\nweights",
        PART + b"Content-Range: bytes 0-0/0\r\n\r\n",
        PART + b"Content-Range: bytes 0-0/9999999999\r\n\r\n",
        PART + b"Content-Range: lines 1-2\r\n\r\nweights",
        b"HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: ftp://127.0.0.1:9/weights\r\n\r\n",
        b"HTTP/1.0 302 Found\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.0 429 Slow down\r\nRetry-After: Mon, 01 Jan 0001 00:00:00 -0000\r\n\r\n",
        b"HTTP/1.0 429 Slow down\r\nRetry-After: " + b"9" * 400 + b"\r\n\r\n",
        b"HTTP/1.0 503 Unavailable\r\n\r\n",
    ],
    ids=lambda head: repr(head[:60]),
)
def test_answers_that_make_no_sense(server: Server, served: File, name: str, tmp_path: Path, head: bytes, step: int):
    """In place of the file, or, with the archive, of one of its three ranges."""
    served.faults = [*[Fault()] * step, *[Fault(raw=head)] * 20]
    message = unavailable(tmp_path, name)
    assert f"tried: {server.url}" in message or "models.zip is broken" in message or "damaged" in message
    assert len(message) < 2000
    assert_nothing_left(tmp_path)


def test_a_loop_of_redirects(server: Server, served: File, name: str, tmp_path: Path):
    served.faults = [
        Fault(status=302, headers={"Location": "/mobilevitv2-0.5.pt" if name == APPLE_ROW else MODELS})
    ] * 99
    assert "redirect" in unavailable(tmp_path, name)
    assert len(server.requests) < 40


@pytest.mark.parametrize("step", ["file", "archive", "size", "directory", "checkpoint"])
def test_a_body_without_end_is_given_up(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch, step: str
):
    monkeypatch.setattr(fetch, "_MAX_ARCHIVE", 1 << 26)
    content = models(checkpoint)
    if step == "file":
        url = server.add("/mobilevitv2-0.5.pt", b"", faults=[Fault(raw=OK + b"\r\n", endless=True)])
        monkeypatch.setitem(WEIGHTS, APPLE_ROW, dataclasses.replace(WEIGHTS[APPLE_ROW], url=url))
    else:
        head = PART + b"Content-Range: bytes 0-0/%d\r\n\r\n" % len(content) if step == "size" else OK + b"\r\n"
        before = {"archive": [Fault(raw=OK + b"\r\n")], "size": [], "directory": [Fault()]}.get(
            step, [Fault(), Fault()]
        )
        server.add(MODELS, content, faults=[*before, Fault(raw=head, endless=True)])
    if step == "size":  # of which one byte is looked at
        assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    else:
        assert "got more" in unavailable(tmp_path, APPLE_ROW if step == "file" else MICRON)
        assert_nothing_left(tmp_path)
    most = {"file": 1 << 28, "archive": 1 << 26}.get(step, len(content))
    assert max(request.sent for request in server.requests) < most + 50_000_000  # what the buffers on the way hold


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_wrong_length(served: File, name: str, weights: bytes, tmp_path: Path, difference: int):
    if name == MICRON:  # it has been replaced by another one since its size was asked for
        size = len(served.content) + difference
        served.faults = [Fault(raw=PART + b"Content-Range: bytes 0-0/%d\r\n\r\nP" % size)]
    else:
        served.length = len(weights) + difference
    message = unavailable(tmp_path, name)
    assert "models.zip" in message or "mobilevitv2-0.5.pt" in message
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_leaves_nothing(
    server: Server, served: File, name: str, weights: bytes, tmp_path: Path, how: signal.Signals
):
    """Ctrl-C nothing at all, what kills it at once nothing in the cache."""
    served.faults += [Fault(cut_after=len(weights) // 2, stall=60.0)]
    requests = 3 if name == MICRON else 1
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    code = f"""
import dataclasses, signal
from timm_mobilevit.weights import fetch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so would its child
from timm_mobilevit.weights.pretrained import WEIGHTS
fetch.MICRON_ARCHIVE = {fetch.MICRON_ARCHIVE!r}
WEIGHTS[{name!r}] = dataclasses.replace(WEIGHTS[{name!r}], url={WEIGHTS[name].url!r})
fetch.fetch_weights({name!r}, {str(cache)!r})
"""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(server.requests) < requests:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        child.send_signal(how)
        assert child.wait() != 0
    assert_nothing_left(cache)
    if how is signal.SIGINT:
        assert not list(scratch.iterdir())
    assert_weights(fetch_weights(name, cache), weights, name)


# ----------------------------------------------------------------------------------------- files that are broken inside


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def broken_checkpoints(checkpoints: Callable[[str], bytes]) -> dict[str, tuple[bytes, str]]:
    """Files and what is said about them."""
    whole = checkpoints("mobilevitv3_xxs")
    headless = {key: value for key, value in read(whole).items() if "classifier" not in key}
    buffers = {name: io.BytesIO() for name in ("headless", "zip pickle")}
    torch.save(headless, buffers["headless"])
    torch.save({"weight": RunsCode()}, buffers["zip pickle"])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    return {
        "truncated": (whole[:100_000], "damaged"),
        "empty": (b"", "damaged"),
        "checksum": (bytes(flipped), "damaged"),
        "pickle that runs code": (pickle.dumps(RunsCode()), "never done"),
        "torch file that runs code": (buffers["zip pickle"].getvalue(), "never done"),
        "other arch": (checkpoints("mobilevitv3_xs"), "no cvnets checkpoint of mobilevitv3_xxs"),
        "no classifier": (buffers["headless"].getvalue(), "expected a classifier of 1000 classes, got 0"),
    }


def test_a_bad_checkpoint_in_the_right_folder(
    server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where RunsCode would leave its mark
    for content, complaint in broken_checkpoints(checkpoints).values():
        server.add(MODELS, models(content))
        message = unavailable(tmp_path / "cache")
        assert complaint in message
        assert f"{MODELS} ({MEMBER}): " in message
        assert_nothing_left(tmp_path / "cache")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", [APPLE_ROW], indirect=True)
@pytest.mark.parametrize("damage", ["truncated", "checksum"])
def test_a_file_of_apples_that_is_damaged(served: File, name: str, tmp_path: Path, damage: str):
    content = bytearray(served.content)
    content[len(content) // 2] ^= 1
    served.content = bytes(content) if damage == "checksum" else served.content[:-1000]
    assert "damaged" in unavailable(tmp_path, name)
    assert_nothing_left(tmp_path)


def central(content: bytes, offset: int, value: int) -> bytes:
    """Overwrite four bytes of the checkpoint's entry in a zip's directory."""
    at = content.index(b"PK\1\2") + offset
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (20, 1 << 31),  # size in the archive
        (20, 1 << 27),  # the request is for no more than there is
        (20, 10),
        (24, (1 << 28) + 1),  # size of the checkpoint
        (24, 10),
        (16, 0),  # CRC-32
        (42, 0xFFFFFFF0),  # where it stands
        (42, 7),
    ],
    ids=["packed size", "large packed size", "small packed size", "size", "small size", "checksum", "place", "other"],
)
def test_a_directory_that_lies(server: Server, tmp_path: Path, checkpoint: bytes, offset: int, value: int):
    content = central(models(checkpoint), offset, value)
    server.add(MODELS, content)
    assert "models.zip" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)
    assert sum(server.sent()) < 3 * len(content)


def test_a_bomb(server: Server, tmp_path: Path):
    """It unpacks to a thousand times its size, and is no checkpoint."""
    server.add(MODELS, zipped({MEMBER: bytes(50_000_000)}))
    assert "damaged" in unavailable(tmp_path)
    server.add(MODELS, zipped({MEMBER: bytes((1 << 28) + 1)}))
    assert "is 268435457 bytes large, expected at most 268435456" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


# --------------------------------------------------------------------------- archives, in the directory filled by hand


@pytest.fixture
def take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], bytes | None]:
    """Gives the checkpoint that is found in an archive, as it is, and looks at what is written."""

    place = tmp_path / "place"  # a name in the archive may lead out of it

    def take(content: bytes) -> bytes | None:
        target = place / "work" / CHECKPOINT
        target.parent.mkdir(exist_ok=True, parents=True)
        (place / "models.zip").write_bytes(content)
        before = sorted(tmp_path.rglob("*"))
        member = fetch._take(place / "models.zip", FOLDER, target)
        if member is None:
            assert sorted(tmp_path.rglob("*")) == before
            return None
        return target.read_bytes()

    return take


@pytest.mark.parametrize("prefix", ["", "./", "models/MobileViTv3-v1/results_classification/", "mobilevitv3_1_0_0/"])
def test_the_model_among_others(take: Callable[[bytes], bytes | None], prefix: str):
    # The folders of other tasks are there too, as they are in the release.
    folders = [row.folder for row in WEIGHTS.values() if row.folder] + ["mobilevitv3_XXS_voc_e50_7404"]
    names = (CHECKPOINT, "checkpoint_best.pt", "checkpoint_ema.pt", f"._{CHECKPOINT}", "logs.txt")
    files = {f"{prefix}{folder}/{name}": f"{folder} {name}".encode() for folder in folders for name in names}
    assert take(zipped(files)) == f"{FOLDER} {CHECKPOINT}".encode()


@pytest.mark.parametrize(
    "path",
    [
        CHECKPOINT,
        f"X{FOLDER}/{CHECKPOINT}",
        f"{FOLDER}/checkpoint_ema.pt",
        f"{FOLDER}/{CHECKPOINT}.txt",
        f"{FOLDER}/{CHECKPOINT}/data",
        f"{FOLDER}/mobilevitv3_S_voc_e50_7959/{CHECKPOINT}",
        f"../{FOLDER}/{CHECKPOINT}",
        f"/{FOLDER}/{CHECKPOINT}",
        f"a/../../{FOLDER}/{CHECKPOINT}",
        f"C:/{FOLDER}/{CHECKPOINT}",
    ],
)
def test_paths_that_are_not_the_checkpoints_or_lead_out(take: Callable[[bytes], bytes | None], path: str):
    assert take(zipped({path: b"weights"})) is None


def test_several_that_fit(take: Callable[[bytes], bytes | None]):
    with pytest.raises(ValueError, match=r"expected one checkpoint_ema_best.pt of .*, found 2: a/.*, b/"):
        take(zipped({f"a/{FOLDER}/{CHECKPOINT}": b"1", f"b/{FOLDER}/{CHECKPOINT}": b"2"}))


def test_links(take: Callable[[bytes], bytes | None]):
    content = zipped({MEMBER: b"/etc/hostname"})
    assert take(content) == b"/etc/hostname"
    assert take(central(content, 38, 0o120777 << 16)) is None  # external attributes: a symbolic link


def test_names_with_backslashes(take: Callable[[bytes], bytes | None]):
    content = zipped({MEMBER: b"weights"})
    assert take(content.replace(MEMBER.encode(), MEMBER.replace("/", "\\").encode())) == b"weights"


def test_member_that_is_larger_than_it_declares(take: Callable[[bytes], bytes | None], tmp_path: Path):
    honest = zipped({MEMBER: bytes(5_000_000)})
    size = (5_000_000).to_bytes(4, "little")
    assert honest.count(size) == 2
    with pytest.raises(ValueError, match=r"models\.zip is broken"):
        take(honest.replace(size, (1000).to_bytes(4, "little")))
    assert (tmp_path / "place/work" / CHECKPOINT).stat().st_size <= 1000


@pytest.mark.parametrize("kept", [0, 0.05, 0.5, 0.9])
def test_truncated_archive(take: Callable[[bytes], bytes | None], kept: float):
    content = zipped({"notes.txt": b"x" * 5000, MEMBER: bytes(range(256)) * 4000})
    with pytest.raises(ValueError, match=r"models\.zip is broken or no zip archive"):
        take(content[: int(len(content) * kept)])


@pytest.mark.parametrize(("offset", "value"), [(0, 1), (2, 99)], ids=["encrypted", "unknown compression"])
def test_zip_that_python_cannot_read(take: Callable[[bytes], bytes | None], offset: int, value: int):
    content = bytearray(zipped({MEMBER: b"weights"}))
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # local and central: flags, then the method
        content[content.index(header) + flags + offset] = value
    with pytest.raises(ValueError, match=r"broken or no zip archive: .*(password|not supported)"):
        take(bytes(content))


def test_an_error_of_the_disk_is_not_blamed_on_the_archive(tmp_path: Path):
    (tmp_path / "models.zip").write_bytes(zipped({MEMBER: b"weights"}))
    with pytest.raises(FileNotFoundError):
        fetch._take(tmp_path / "models.zip", FOLDER, tmp_path / "missing" / "target")


@pytest.mark.parametrize("compression", [0, 8])
def test_flipped_bits(take: Callable[[bytes], bytes | None], compression: int):
    """Each gives the checkpoint, nothing, or an error that names the archive."""
    draw, weights = random.Random(0), random.Random(1).randbytes(20_000)
    content = zipped({"notes.txt": b"x" * 3000, MEMBER: weights}, compression)
    complaints = []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            # Two thirds of them in the headers, which are at the start and at the end.
            at = draw.choice([draw.randrange(len(content)), draw.randrange(600), -1 - draw.randrange(400)])
            damaged[at] ^= 1 << draw.randrange(8)
        try:
            assert take(bytes(damaged)) in (weights, None)
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 20
    assert all("models.zip" in complaint for complaint in complaints)

import random
from http.client import BadStatusLine
from pathlib import Path
from urllib.error import URLError

import pytest
from servers import Fault, Server, serve

from timm_mobilevit.weights.fetch import transfer
from timm_mobilevit.weights.fetch.transfer import download

CONTENT = random.Random(0).randbytes(3_000_000)
HALF = 1_500_000


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "download.part"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited between attempts, without waiting."""
    waits: list[float] = []
    monkeypatch.setattr(transfer, "sleep", waits.append)
    monkeypatch.setenv("no_proxy", "*")
    return waits


def assert_complete(part: Path) -> None:
    assert part.read_bytes() == CONTENT
    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_whole_file_at_once(server: Server, part: Path):
    download(server.add("/file", CONTENT), part, size=len(CONTENT))
    assert_complete(part)
    assert len(server.requests) == 1


def test_a_cut_download_goes_on_where_it_was(server: Server, part: Path, waits: list[float]):
    url = server.add("/file", CONTENT, faults=[Fault(cut_after=HALF)])
    download(url, part, size=len(CONTENT))
    assert_complete(part)
    assert server.sent("/file") == [HALF, len(CONTENT) - HALF]
    assert server.requests[1].headers["If-Range"] == '"1"'
    assert len(waits) == 1


@pytest.mark.parametrize(
    "changes",
    [{"ranges": False}, {"etag": ""}, {"etag": 'W/"1"'}],
    ids=["no ranges", "no validator", "weak validator"],
)
def test_what_cannot_be_continued_starts_again(server: Server, part: Path, changes: dict[str, object]):
    url = server.add("/file", CONTENT, faults=[Fault(cut_after=HALF)], **changes)
    download(url, part)
    assert_complete(part)
    assert server.sent("/file") == [HALF, len(CONTENT)]


def test_a_file_that_changes_meanwhile_starts_again(server: Server, part: Path, monkeypatch: pytest.MonkeyPatch):
    url = server.add("/file", bytes(len(CONTENT)), faults=[Fault(cut_after=HALF)])
    monkeypatch.setattr(transfer, "sleep", lambda seconds: server.add("/file", CONTENT, etag='"2"'))
    download(url, part)
    assert_complete(part)
    assert "Range" in server.requests[1].headers


def test_what_lies_there_is_replaced_or_deleted(server: Server, part: Path):
    part.write_bytes(b"of another file, and longer" * 1_000_000)
    download(server.add("/file", CONTENT), part)
    assert_complete(part)
    with pytest.raises(OSError, match="404"):
        download(f"{server.url}/nothing", part)
    assert not part.exists()


def test_last_modified_stands_in_for_a_weak_etag(server: Server, part: Path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    url = server.add("/file", CONTENT, etag='W/"1"', last_modified=date, faults=[Fault(cut_after=HALF)])
    download(url, part)
    assert_complete(part)
    assert server.requests[1].headers["If-Range"] == date
    assert server.sent("/file")[1] == len(CONTENT) - HALF


@pytest.mark.parametrize("claimed", [7, -5], ids=["elsewhere", "nowhere"])
def test_an_answer_to_another_range_is_thrown_away(server: Server, part: Path, claimed: int):
    url = server.add("/file", CONTENT, range_start=claimed, faults=[Fault(cut_after=HALF)])
    download(url, part)
    assert_complete(part)
    assert len(server.requests) == 3  # cut, wrong range, whole


def test_a_stalled_connection_is_given_up_and_resumed(server: Server, part: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "_TIMEOUT", 0.2)
    url = server.add("/file", CONTENT, faults=[Fault(cut_after=HALF, stall=0.5)])
    download(url, part)
    assert_complete(part)
    assert server.sent("/file") == [HALF, len(CONTENT) - HALF]  # not a byte twice


def test_unknown_length(server: Server, part: Path):
    download(server.add("/file", CONTENT, length=0), part)
    assert_complete(part)


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_wrong_length_is_an_error_and_leaves_nothing(server: Server, part: Path, size: int):
    url = server.add("/file", CONTENT)
    with pytest.raises(OSError, match=rf"expected {size} bytes, the server offers {len(CONTENT)}"):
        download(url, part, size=size)
    assert not list(part.parent.iterdir())


def test_a_file_of_unknown_length_that_ends_early_is_asked_for_again(server: Server, part: Path):
    url = server.add("/file", CONTENT, length=0, ranges=False, faults=[Fault(cut_after=HALF)])
    download(url, part, size=len(CONTENT))
    assert_complete(part)
    with pytest.raises(OSError, match=f"the connection was cut after {len(CONTENT)} of {len(CONTENT) + 1} bytes"):
        download(url, part, size=len(CONTENT) + 1)


def test_no_more_than_allowed(server: Server, part: Path):
    for length, complaint in ((None, f"the server offers {len(CONTENT)}"), (0, "got more")):
        url = server.add("/file", CONTENT, length=length)
        with pytest.raises(OSError, match=f"expected at most {HALF} bytes, {complaint}"):
            download(url, part, most=HALF)
        assert not list(part.parent.iterdir())


def test_always_cut_is_an_error_in_the_end(server: Server, part: Path, waits: list[float]):
    url = server.add("/file", CONTENT, length=len(CONTENT) + 1, ranges=False)
    with pytest.raises(OSError, match=r"/file: the connection was cut after 3000000 of 3000001 bytes"):
        download(url, part)
    assert len(server.requests) < 10
    assert waits[-4:] == [1, 2, 4, 8]


def test_as_long_as_it_progresses_it_goes_on(server: Server, part: Path):
    big = CONTENT * 4
    url = server.add("/file", big, faults=[Fault(cut_after=1_100_000)] * 10)
    download(url, part)
    assert part.read_bytes() == big
    assert len(server.requests) == 11


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_tried_again(server: Server, part: Path, waits: list[float], status: int):
    url = server.add("/file", CONTENT, faults=[Fault(status=status), Fault(status=status)])
    download(url, part)
    assert_complete(part)
    assert waits == [1, 2]


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("7", 7, 7), ("Wed, 21 Oct 2015 07:28:00 GMT", 1, 1), ("soon", 1, 1)],
    ids=["seconds", "date", "nonsense"],
)
def test_the_wait_that_the_server_asks_for(
    server: Server, part: Path, waits: list[float], value: str, least: float, most: float
):
    download(server.add("/file", CONTENT, faults=[Fault(status=429, headers={"Retry-After": value})]), part)
    assert least <= waits[0] <= most


def test_a_server_that_asks_for_too_long_a_wait_is_given_up(server: Server, part: Path, waits: list[float]):
    url = server.add("/file", CONTENT, faults=[Fault(status=429, headers={"Retry-After": "3600"})])
    with pytest.raises(OSError, match="429"):
        download(url, part)
    assert not waits


def test_a_missing_file_is_not_tried_again(server: Server, part: Path, waits: list[float]):
    with pytest.raises(OSError, match=r"/nothing: HTTP Error 404"):
        download(f"{server.url}/nothing", part)
    assert len(server.requests) == 1
    assert not list(part.parent.iterdir())


def test_nobody_listens(part: Path, waits: list[float]):
    with serve() as server:
        url = server.url
    with pytest.raises(OSError, match="refused"):
        download(url, part)
    assert not waits


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/file"])
def test_only_http(part: Path, url: str):
    with pytest.raises(OSError, match="expected an http address"):
        download(url, part)
    assert not list(part.parent.iterdir())


def test_a_full_disk_is_not_tried_again(server: Server, tmp_path: Path, waits: list[float]):
    with pytest.raises(OSError, match="No such file or directory"):  # stands in for it: as little to be mended by time
        download(server.add("/file", CONTENT), tmp_path / "missing" / "part")
    assert not waits


@pytest.mark.parametrize("error", [URLError(TimeoutError("timed out")), BadStatusLine("?")])
def test_connections_that_fail_to_come_about_are_tried_again(
    part: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], error: Exception
):
    def urlopen(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(transfer, "urlopen", urlopen)
    with pytest.raises(OSError, match=r"^http://127\.0\.0\.1/file: "):
        download("http://127.0.0.1/file", part)
    assert waits == [1, 2, 4, 8]


def test_the_token_stays_with_the_host_it_is_for(server: Server, part: Path):
    url = server.add("/target", b"[1]")
    server.add("/api", b"", faults=[Fault(status=302, headers={"Location": url.replace("127.0.0.1", "localhost")})])
    download(f"{server.url}/api", part, token="secret")
    assert part.read_bytes() == b"[1]"
    assert [request.headers.get("Authorization") for request in server.requests] == ["Bearer secret", None]


# ------------------------------------------------------------------------------------------------------ parts of files


@pytest.mark.parametrize("span", [(0, 100), (1_000_000, 2_500_000), (len(CONTENT) - 1, len(CONTENT))])
def test_a_span(server: Server, part: Path, span: tuple[int, int]):
    download(server.add("/file", CONTENT), part, span=span, size=len(CONTENT))
    assert part.read_bytes() == CONTENT[slice(*span)]
    assert server.requests[0].headers["Range"] == f"bytes={span[0]}-{span[1] - 1}"
    assert server.sent("/file") == [span[1] - span[0]]


def test_a_span_that_is_cut_goes_on_where_it_was(server: Server, part: Path):
    url = server.add("/file", CONTENT, faults=[Fault(cut_after=400_000)] * 2)
    download(url, part, span=(HALF, HALF + 1_000_000), size=len(CONTENT))
    assert part.read_bytes() == CONTENT[HALF : HALF + 1_000_000]
    assert server.sent("/file") == [400_000, 400_000, 200_000]


@pytest.mark.parametrize(
    "changes", [{"ranges": False}, {"range_start": 7}, {"faults": [Fault(status=501)]}, {"faults": [Fault(status=416)]}]
)
def test_a_span_that_the_server_does_not_give(server: Server, part: Path, changes: dict[str, object]):
    url = server.add("/file", CONTENT, **changes)
    with pytest.raises(OSError, match=r"/file: "):
        download(url, part, span=(HALF, HALF + 100), size=len(CONTENT))
    assert not list(part.parent.iterdir())


def test_a_span_of_a_file_of_another_size(server: Server, part: Path):
    url = server.add("/file", CONTENT)
    with pytest.raises(OSError, match="the server offers 3000000"):
        download(url, part, span=(0, 100), size=len(CONTENT) + 1)


def test_a_span_that_floods(server: Server, part: Path):
    head = b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 0-99/3000000\r\n\r\n"
    url = server.add("/file", CONTENT, faults=[Fault(raw=head, endless=True)])
    download(url, part, span=(0, 100), size=len(CONTENT))
    assert part.read_bytes() == bytes(100)


def test_a_server_that_takes_back_what_it_gave_is_given_up(server: Server, part: Path):
    faults = [Fault(cut_after=HALF), Fault(status=416)] * 20
    url = server.add("/file", CONTENT, faults=faults)
    with pytest.raises(OSError, match=r"/file: "):
        download(url, part)
    assert len(server.requests) < 10


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_on_a_terminal_only(
    server: Server, part: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    download(server.add("/weights.zip", CONTENT), part)
    shown = capsys.readouterr().err
    assert ("weights.zip: 100%" in shown and "3.00M/3.00M" in shown) if terminal else not shown

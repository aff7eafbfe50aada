import dataclasses
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
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
from servers import MODELS, Fault, Server

from timm_mobilevit.weights import fetch, pretrained
from timm_mobilevit.weights.fetch import CHECKPOINT, fetch_weights
from timm_mobilevit.weights.pretrained import APPLE, WEIGHTS

SECOND = "mobilevitv3_xxs_l2.micron_in1k"

# ----------------------------------------------------------------------------------------------- Micron's archive


def member_of(name: str) -> str:
    return MEMBER.replace(FOLDER, WEIGHTS[name].folder)


def spans(server: Server) -> list[tuple[int, int]]:
    """First and last byte of each range that was requested of the archive."""
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"]) for request in server.requests]
    return [(int(span[1]), int(span[2])) for span in ranges]


def test_address_of_the_archive():
    """Beside the page that the table names, by the name that the authors state."""
    url = "https://github.com/micronDLA/MobileViTv3/releases/download/v1.0.0/models.zip"
    assert url == pretrained.MICRON_ARCHIVE


@pytest.mark.parametrize("compression", [0, 8])
def test_two_ranges_of_the_archive(
    server: Server,
    tmp_path: Path,
    checkpoints: Callable[[str], bytes],
    compression: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """Its directory and the checkpoint, wherever it lies; nothing is kept, and no token leaves for another host."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    checkpoint, second = checkpoints("mobilevitv3_xxs"), checkpoints("mobilevitv3_xxs_l2")
    padding = os.urandom(2_000_000)
    files = {"models/a.bin": padding, MEMBER: checkpoint, "models/b.bin": padding, member_of(SECOND): second}
    content = zipped({**files, "models/c.bin": padding}, compression)
    url = server.add(MODELS, content)
    record = assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert (record["source"], record["member"]) == (url, MEMBER)
    size, directory, member = spans(server)
    assert size == (0, 0)
    assert directory == (len(content) - (1 << 20), len(content) - 1)
    assert member[1] - member[0] <= len(checkpoint) + 5000
    assert not any("secret" in str(request.headers) for request in server.requests)

    assert_weights(fetch_weights(SECOND, tmp_path), checkpoints("mobilevitv3_xxs_l2"), SECOND)
    assert sum(server.sent()) < len(content)
    assert {file.name for file in (tmp_path / "timm-mobilevit").iterdir()} <= {MICRON, SECOND, "lock"}


def test_a_small_archive(server: Server, tmp_path: Path):
    server.add(MODELS, zipped({MEMBER: b"small"}))
    assert "damaged" in unavailable(tmp_path)
    assert spans(server)[1] == (0, len(server.files[MODELS].content) - 1)


def test_a_server_that_gives_whole_files_only(server: Server, tmp_path: Path, checkpoint: bytes):
    server.add(MODELS, models(checkpoint), ranges=False)
    assert assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)["member"] == MEMBER
    assert "Range" not in server.requests[-1].headers


@pytest.mark.parametrize(
    "files",
    [{f"mobilevitv3_XXS_L2_e300_7023/{CHECKPOINT}": b""}, {CHECKPOINT: b""}, {f"X{FOLDER}/{CHECKPOINT}": b""}],
    ids=["other folder", "no folder", "longer name"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_the_archive_does_not_hold_the_model(server: Server, tmp_path: Path, files: dict[str, bytes], ranges: bool):
    server.add(MODELS, zipped(files), ranges=ranges)
    assert f"{MODELS} does not hold {FOLDER}" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_no_network(tmp_path: Path):
    message = unavailable(tmp_path)
    assert "http://127.0.0.1:9" in message
    assert WEIGHTS[MICRON].url in message
    assert FOLDER in message
    assert_nothing_left(tmp_path)


def test_offline_mode_makes_no_request(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in unavailable(tmp_path)
    assert not server.requests


def test_a_cache_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "timm-mobilevit").write_bytes(b"a file where a directory should be")
    assert "timm-mobilevit" in unavailable(tmp_path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mobilevitv3_xxs.micron_in1", r"did you mean .*mobilevitv3_xxs\.micron_in1k"),
        ("resnet50", r"no pretrained weights 'resnet50'"),
        *((name, r"from the hub") for name, row in WEIGHTS.items() if row.hf_hub_id),
    ],
)
def test_names_that_are_none_of_ours(tmp_path: Path, name: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        fetch_weights(name, tmp_path)


# ------------------------------------------------------------------------------------------------------------ Apple's


def test_a_file_of_apples(
    server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
):
    row = WEIGHTS[APPLE_ROW]
    checkpoint = checkpoints(APPLE_ROW.partition(".")[0])
    url = server.add("/mobilevitv2-0.5.pt", checkpoint)
    monkeypatch.setitem(WEIGHTS, APPLE_ROW, dataclasses.replace(row, url=url))
    record = assert_weights(fetch_weights(APPLE_ROW, tmp_path), checkpoint, APPLE_ROW)
    assert (record["source"], record["member"]) == (url, None)

    server.files.clear()
    message = unavailable(tmp_path / "other", APPLE_ROW)
    assert f"tried: {url}: " in message
    assert "404" in message


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_on_a_terminal_only(
    server: Server, tmp_path: Path, checkpoint: bytes, capsys, monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    server.add(MODELS, models(checkpoint), ranges=False)
    fetch_weights(MICRON, tmp_path)
    assert ("models.zip: 100%" in capsys.readouterr().err) == terminal


# -------------------------------------------------------------------------------------------------------------- cache


def test_the_next_call_makes_no_request(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
):
    server.add(MODELS, models(checkpoint))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
    path = fetch_weights(MICRON)
    assert path.is_relative_to(tmp_path / "timm-mobilevit")
    requests, time = len(server.requests), path.stat().st_mtime_ns
    path.parent.chmod(0o500)  # as in a cache that others share
    try:
        assert fetch_weights(MICRON) == path
    finally:
        path.parent.chmod(0o700)
    assert len(server.requests) == requests
    assert path.stat().st_mtime_ns == time


@pytest.mark.parametrize("damage", ["weights", "truncated", "record", "no record", "other order"])
def test_a_broken_cache_is_fetched_again(
    server: Server, tmp_path: Path, checkpoint: bytes, damage: str, monkeypatch: pytest.MonkeyPatch
):
    server.add(MODELS, models(checkpoint))
    path = fetch_weights(MICRON, tmp_path)
    record = path.with_suffix(".json")
    if damage == "weights":
        path.write_bytes(bytes(path.stat().st_size))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "record":
        record.write_text("{")
    elif damage == "no record":
        record.unlink()
    else:  # a later version of this package knows better
        monkeypatch.setitem(WEIGHTS, MICRON, dataclasses.replace(WEIGHTS[MICRON], channel_order="rgb"))
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert spans(server).count((0, 0)) == 2


def test_two_processes_download_once(server: Server, tmp_path: Path, checkpoint: bytes):
    server.add(MODELS, models(checkpoint), faults=[Fault(), Fault(stall=0.5)])
    code = (
        "import sys; from timm_mobilevit.weights import fetch\n"
        f"fetch.MICRON_ARCHIVE = {fetch.MICRON_ARCHIVE!r}\n"
        f"print('ready', flush=True); sys.stdin.readline(); print(fetch.fetch_weights({MICRON!r}, {str(tmp_path)!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "ready\n"  # past its slow imports: now we run into each other
        other.stdin.write("\n")
        other.stdin.flush()
        path = fetch_weights(MICRON, tmp_path)
        assert other.communicate(timeout=60)[0].strip() == str(path)
    assert other.returncode == 0
    assert_weights(path, checkpoint)
    assert len(server.requests) == 3


def test_different_models_at_once(server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes]):
    files = {member_of(name): checkpoints(name.partition(".")[0]) for name in (MICRON, SECOND)}
    server.add(MODELS, zipped(files), faults=[Fault(), Fault(stall=0.5)])
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda name: fetch_weights(name, tmp_path), (MICRON, SECOND)))
    for path, name in zip(paths, (MICRON, SECOND), strict=True):
        assert_weights(path, checkpoints(name.partition(".")[0]), name)


def test_the_licence_is_logged_once(
    server: Server, tmp_path: Path, checkpoint: bytes, caplog: pytest.LogCaptureFixture
):
    server.add(MODELS, models(checkpoint))
    with caplog.at_level(logging.WARNING, logger="timm_mobilevit"):
        for _ in range(2):
            fetch_weights(MICRON, tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "non-commercial" in message
    assert WEIGHTS[MICRON].license in message
    assert WEIGHTS[MICRON].origin in message


# ---------------------------------------------------------------------------------------------- TIMM_MOBILEVIT_WEIGHTS


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    monkeypatch.setenv("TIMM_MOBILEVIT_WEIGHTS", str(tree))
    return tree


def put(tree: Path, path: str, content: bytes) -> Path:
    file = tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        (f"{FOLDER}/{CHECKPOINT}", None),
        (MEMBER, None),
        ("models.zip", MEMBER),
        ("downloads/models.zip", f"{FOLDER}/{CHECKPOINT}"),
    ],
)
def test_tree(tree: Path, tmp_path: Path, checkpoint: bytes, path: str, inside: str | None):
    put(tree, f"mobilevitv3_XS_e300_7671/{CHECKPOINT}", b"another model's")
    put(tree, "a/models.zip", zipped({"README.md": b""}))
    file = put(tree, path, zipped({inside: checkpoint}) if inside else checkpoint)
    file.chmod(0o400)
    record = assert_weights(fetch_weights(MICRON, tmp_path / "cache"), checkpoint)
    assert (record["source"], record["member"]) == (str(file), inside)
    assert file.exists()


def test_the_tree_may_be_the_models_folder(tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch):
    file = put(tmp_path / FOLDER, CHECKPOINT, checkpoint)
    monkeypatch.setenv("TIMM_MOBILEVIT_WEIGHTS", str(file.parent))
    assert_weights(fetch_weights(MICRON, tmp_path / "cache"), checkpoint)


def test_the_tree_comes_before_the_cache_until_it_is_unset(
    tree: Path, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
):
    file = put(tree, f"{FOLDER}/{CHECKPOINT}", checkpoint)
    path = fetch_weights(MICRON, tmp_path / "cache")
    first = path.stat().st_mtime_ns
    fetch_weights(MICRON, tmp_path / "cache")
    assert path.stat().st_mtime_ns == first  # not converted again

    other = {key: value + 1 for key, value in read(checkpoint).items()}
    torch.save(other, file)
    assert_weights(fetch_weights(MICRON, tmp_path / "cache"), file.read_bytes())

    monkeypatch.delenv("TIMM_MOBILEVIT_WEIGHTS")
    assert_weights(fetch_weights(MICRON, tmp_path / "cache"), file.read_bytes())


def test_what_is_not_in_the_tree_is_downloaded(server: Server, tree: Path, tmp_path: Path, checkpoint: bytes):
    server.add(MODELS, models(checkpoint))
    put(tree, f"mobilevitv3_XXS_L2_e300_7023/{CHECKPOINT}", b"another model's")
    assert_weights(fetch_weights(MICRON, tmp_path / "cache"), checkpoint)
    requests = len(server.requests)
    assert_weights(fetch_weights(MICRON, tmp_path / "cache"), checkpoint)
    assert len(server.requests) == requests


def test_neither_in_the_tree_nor_at_the_origin(tree: Path, tmp_path: Path):
    message = unavailable(tmp_path / "cache")
    assert f"TIMM_MOBILEVIT_WEIGHTS={tree}: not in it" in message
    assert "http://127.0.0.1:9" in message


def test_apples_files_are_told_apart_by_their_path(tree: Path, tmp_path: Path, checkpoints: Callable[[str], bytes]):
    checkpoint = checkpoints(APPLE_ROW.partition(".")[0])
    url = WEIGHTS[APPLE_ROW].url
    file = put(tree, f"mirror/{url.removeprefix(APPLE)}", checkpoint)
    put(tree, f"mirror/{url.removeprefix(APPLE).replace('384x384', '256x256')}", b"the other size's")
    record = assert_weights(fetch_weights(APPLE_ROW, tmp_path / "cache"), checkpoint, APPLE_ROW)
    assert record["source"] == str(file)


@pytest.mark.parametrize("path", [f"{FOLDER}/{CHECKPOINT}", "models.zip"])
def test_a_broken_file_in_the_tree_is_an_error(server: Server, tree: Path, tmp_path: Path, path: str):
    put(tree, path, b"broken")
    assert Path(path).name in unavailable(tmp_path / "cache")
    assert not server.requests


def test_folders_in_the_tree_may_be_links(tree: Path, tmp_path: Path, checkpoint: bytes):
    file = put(tmp_path / "disk", f"{FOLDER}/{CHECKPOINT}", checkpoint)
    (tree / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tree)
    record = assert_weights(fetch_weights(MICRON, tmp_path / "cache"), checkpoint)
    assert file.exists()
    assert record["source"] == str(tree / "linked" / FOLDER / CHECKPOINT)


def test_several_in_the_tree(tree: Path, tmp_path: Path, checkpoint: bytes):
    for copy in ("a", "b"):
        put(tree, f"{copy}/{FOLDER}/{CHECKPOINT}", checkpoint)
    assert "expected one" in unavailable(tmp_path / "cache")


def test_a_tree_and_a_cache_that_cannot_be_written(tree: Path, tmp_path: Path, checkpoint: bytes):
    put(tree, "models.zip", models(checkpoint))
    path = fetch_weights(MICRON, tmp_path / "cache")
    for directory in (tree, path.parent, path.parents[1]):
        directory.chmod(0o500)
    try:
        assert fetch_weights(MICRON, tmp_path / "cache") == path
    finally:
        for directory in (tree, path.parents[1], path.parent):
            directory.chmod(0o700)


def test_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMM_MOBILEVIT_WEIGHTS", str(tmp_path / "missing"))
    with pytest.raises(NotADirectoryError, match=r"TIMM_MOBILEVIT_WEIGHTS=.*missing is not a directory"):
        fetch_weights(MICRON, tmp_path)


# -------------------------------------------------------------------------------------------------------- through timm


def test_pretrained_needs_no_manual_step(server: Server, tmp_path: Path, checkpoint: bytes):
    server.add(MODELS, models(checkpoint))
    model = timm.create_model(MICRON, pretrained=True, cache_dir=str(tmp_path))
    expected = converted(checkpoint, "mobilevitv3_xxs", WEIGHTS[MICRON].channel_order)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

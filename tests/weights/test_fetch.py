import dataclasses
import hashlib
import io
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from archives import PACKERS, zipped
from fetched import (
    APPLE_ROW,
    FOLDER,
    MEMBER,
    MICRON,
    MODELS,
    assert_nothing_left,
    assert_weights,
    converted,
    models,
    read,
    unavailable,
)
from huggingface_hub import constants
from servers import RELEASE, Fault, Server

from timm_mobilevit.weights.fetch import fetch_weights
from timm_mobilevit.weights.fetch.archive import CHECKPOINT
from timm_mobilevit.weights.pretrained import APPLE, WEIGHTS

SECOND = "mobilevitv3_xxs_l2.micron_in1k"

# ---------------------------------------------------------------------------------------------------- from the release


def member_of(name: str) -> str:
    return MEMBER.replace(FOLDER, WEIGHTS[name].folder)


def spans(server: Server, path: str = MODELS) -> list[tuple[int, int]]:
    """First and last byte of each range that was requested of a file."""
    ranges = [request.headers.get("Range", "") for request in server.requests if request.path == path]
    return [
        (int(first), int(last))
        for span in ranges
        for first, last in [re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups()]
    ]


@pytest.mark.parametrize("compression", [0, 8])
def test_two_ranges_of_the_archive(
    server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes], compression: int
):
    """Its directory and the checkpoint, wherever the checkpoint lies; nothing of the archive is kept."""
    checkpoint, second = checkpoints("mobilevitv3_xxs"), checkpoints("mobilevitv3_xxs_l2")
    padding = os.urandom(1_000_000)
    files = {"models/a.bin": padding, MEMBER: checkpoint, "models/b.bin": padding, member_of(SECOND): second}
    content = zipped({**files, "models/c.bin": padding}, compression)
    server.release({"README.md": b"hello", "a.zip": b"not asked for", "models.zip": content})
    record = assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert (record["source"], record["member"]) == (server.url + MODELS, MEMBER)
    assert server.paths() == [RELEASE, MODELS, MODELS]
    directory, member = spans(server)
    assert directory == (len(content) - (1 << 18), len(content) - 1)
    assert member[1] - member[0] <= len(checkpoint) + 5000
    assert not (tmp_path / "timm-mobilevit/archives").exists()

    assert_weights(fetch_weights(SECOND, tmp_path), checkpoints("mobilevitv3_xxs_l2"), SECOND)
    assert sum(server.sent(MODELS)) < len(content)


def test_a_directory_that_is_larger_than_the_first_range(server: Server, tmp_path: Path, checkpoint: bytes):
    names = {f"models/{i:04d}{'x' * 200}": b"" for i in range(2000)}
    server.release({"models.zip": zipped({**names, MEMBER: checkpoint})})
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert len(spans(server)) == 3


def test_a_small_archive_needs_one_range(server: Server, tmp_path: Path):
    server.release({"models.zip": zipped({MEMBER: b"small"})})
    assert "damaged" in unavailable(tmp_path)
    assert spans(server) == [(0, len(server.asset("models.zip").content) - 1)]


@pytest.mark.parametrize("status", [400, 403, 404, 416, 501, 503])
def test_an_error_of_the_ranges_is_no_error_of_the_download(
    server: Server, tmp_path: Path, checkpoint: bytes, status: int
):
    server.release({"models.zip": models(checkpoint)})
    server.asset("models.zip").faults = [Fault(status=status)] * (5 if status == 503 else 1)
    assert assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)["member"] == MEMBER
    assert server.sent(MODELS)[-1] == len(models(checkpoint))
    assert "Range" not in server.requests[-1].headers


def test_ranges_that_fail_halfway(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)})
    server.asset("models.zip").faults = [Fault(), Fault(status=501)]
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


def test_the_whole_archive_is_kept_until_all_its_models_are_cached(
    server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes]
):
    files = {member_of(name): checkpoints(name.partition(".")[0]) for name in (MICRON, SECOND)}
    other_task = MEMBER.replace(FOLDER, "mobilevitv3_XXS_voc_e50_7404")
    server.release({"models.zip": zipped({**files, other_task: b"of no use here"})})
    server.asset("models.zip").ranges = False
    kept = tmp_path / "timm-mobilevit/archives/models.zip"
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoints("mobilevitv3_xxs"))
    assert kept.read_bytes() == server.asset("models.zip").content
    requests = server.paths().count(MODELS)
    assert_weights(fetch_weights(SECOND, tmp_path), checkpoints("mobilevitv3_xxs_l2"), SECOND)
    assert server.paths().count(MODELS) == requests
    assert not list(kept.parent.iterdir())


def test_a_kept_archive_that_is_broken_or_old_is_replaced(server: Server, tmp_path: Path, checkpoint: bytes):
    content = models(checkpoint)
    server.release({"models.zip": content})
    server.asset("models.zip").ranges = False
    kept = tmp_path / "timm-mobilevit/archives/models.zip"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content[:-1])  # of another size: an older one
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    (tmp_path / "timm-mobilevit" / MICRON / "model.json").unlink()
    kept.write_bytes(b"x" * len(content))
    assert "models.zip is broken" in unavailable(tmp_path)
    assert not kept.exists()
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


@pytest.mark.parametrize("kind", PACKERS)
def test_an_archive_of_another_name(server: Server, tmp_path: Path, checkpoint: bytes, kind: str):
    """What is neither an archive nor whole is passed over; of the other zips only the directory is read."""
    padding = {"padding": os.urandom(1_000_000)}
    server.release(
        {
            f"{FOLDER}.pt": b"not asked for",
            "a.zip": zipped({"mobilevitv3_XXS_voc_e50_7404/checkpoint_ema_best.pt": checkpoint, **padding}, 0),
            "b.zip": b"no zip",
            f"c.{kind}": PACKERS[kind]({MEMBER: checkpoint, **padding}),
            "d.zip": b"not asked for",
        }
    )
    record = assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert (record["source"], record["member"]) == (f"{server.url}/assets/c.{kind}", MEMBER)
    assert server.sent("/assets/a.zip") == [1 << 18]
    assert not {f"/assets/{FOLDER}.pt", "/assets/d.zip"} & {*server.paths()}
    assert not list(tmp_path.rglob(f"c.{kind}"))


def test_models_without_ranges_in_several_archives(server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes]):
    """The one that is kept comes first; what holds no model is not kept."""
    files = {member_of(name): checkpoints(name.partition(".")[0]) for name in (MICRON, SECOND)}
    server.release({"a.zip": zipped({"README": b""}), "b.zip": zipped(files)})
    server.asset("a.zip").ranges = server.asset("b.zip").ranges = False
    for name in (MICRON, SECOND):
        assert_weights(fetch_weights(name, tmp_path), checkpoints(name.partition(".")[0]), name)
    assert server.paths() == [RELEASE, *["/assets/a.zip"] * 2, *["/assets/b.zip"] * 2, RELEASE]


def test_the_release_is_asked_again_when_it_stumbles(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)})
    server.files[RELEASE].faults = [Fault(status=500), Fault(status=429, headers={"Retry-After": "1"})]
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


def test_the_token_is_for_the_api_only(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    server.release({"models.zip": models(checkpoint)})
    fetch_weights(MICRON, tmp_path)
    assert [request.headers.get("Authorization") for request in server.requests] == ["Bearer secret", None, None]


def test_the_checksum_that_the_release_states(server: Server, tmp_path: Path, checkpoint: bytes):
    content = models(checkpoint)
    for text, name in ((content, "good"), (b"other", "bad")):
        server.release({"models.zip": content}, digest=f"sha256:{hashlib.sha256(text).hexdigest()}")
        server.asset("models.zip").ranges = False  # of a part, the checksum in the zip is verified
        if name == "good":
            assert_weights(fetch_weights(MICRON, tmp_path / name), checkpoint)
        else:
            assert "checksum" in unavailable(tmp_path / name)
            assert_nothing_left(tmp_path / name)


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


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"assets": [{}]}'])
def test_an_answer_that_is_none_of_the_api(server: Server, tmp_path: Path, answer: bytes):
    server.add(RELEASE, answer)
    assert "not the answer of GitHub's release API" in unavailable(tmp_path)


@pytest.mark.parametrize(("status", "hint"), [(404, False), (403, True)])
def test_no_release(server: Server, tmp_path: Path, status: int, hint: bool):
    server.add(RELEASE, b"", faults=[Fault(status=status)])
    message = unavailable(tmp_path)
    assert str(status) in message
    assert ("GITHUB_TOKEN" in message) == hint


@pytest.mark.parametrize(
    "assets",
    [
        {},
        {"README.md": b"hello", f"{FOLDER}.pt": b"not looked at"},
        {"models.zip": zipped({f"mobilevitv3_XXS_L2_e300_7023/{CHECKPOINT}": b""})},
        {"models.zip": zipped({CHECKPOINT: b""}), "others.zip": zipped({f"X{FOLDER}/{CHECKPOINT}": b""})},
        {"models.zip": b"broken"},
    ],
    ids=["none", "no archives", "other folders", "no folders", "broken"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_no_archive_holds_the_model(server: Server, tmp_path: Path, assets: dict[str, bytes], ranges: bool):
    server.release(assets)
    for name in assets:
        server.asset(name).ranges = ranges
    message = unavailable(tmp_path)
    archives = [name for name in assets if "models" in name or "others" in name]
    assert f"holds {FOLDER} (archives: {', '.join(archives) or 'none'})" in message
    assert ("models.tar is broken" in message) == ("models.tar" in assets)
    assert_nothing_left(tmp_path)


def test_a_wrong_length(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)})
    server.asset("models.zip").content += b"more"
    size = len(models(checkpoint))
    assert f"expected {size} bytes, the server offers {size + 4}" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def broken_checkpoints(checkpoints: Callable[[str], bytes]) -> dict[str, tuple[bytes, str]]:
    """Files and what is said about them."""
    headless = {key: value for key, value in read(checkpoints("mobilevitv3_xxs")).items() if "classifier" not in key}
    buffers = {name: io.BytesIO() for name in ("headless", "zip pickle")}
    torch.save(headless, buffers["headless"])
    torch.save({"weight": RunsCode()}, buffers["zip pickle"])
    return {
        "truncated": (checkpoints("mobilevitv3_xxs")[:100_000], "damaged"),
        "empty": (b"", "damaged"),
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
        server.release({"models.zip": models(content)})
        message = unavailable(tmp_path / "cache")
        assert complaint in message
        assert f"{MODELS} ({MEMBER}): " in message
        assert_nothing_left(tmp_path / "cache")
    assert not Path("ran").exists()


def test_a_truncated_archive(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)[:100_000]})
    assert "models.zip is broken" in unavailable(tmp_path)
    assert_nothing_left(tmp_path)


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
    assert "HTTP Error 404" in message


# -------------------------------------------------------------------------------------------------------------- cache


def test_the_next_call_makes_no_request(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
):
    server.release({"models.zip": models(checkpoint)})
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
    server.release({"models.zip": models(checkpoint)})
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
    assert server.paths().count(RELEASE) == 2


def test_two_processes_download_once(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({"models.zip": models(checkpoint)})
    server.asset("models.zip").faults = [Fault(stall=0.5)]
    code = (
        "import sys; from timm_mobilevit.weights.fetch import fetch_weights\n"
        f"print('ready', flush=True); sys.stdin.readline(); print(fetch_weights({MICRON!r}, {str(tmp_path)!r}))"
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
    assert server.paths() == [RELEASE, MODELS, MODELS]


def test_processes_that_fetch_different_models_download_the_archive_once(
    server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes]
):
    files = {member_of(name): checkpoints(name.partition(".")[0]) for name in (MICRON, SECOND)}
    server.release({"models.zip": zipped(files)})
    server.asset("models.zip").faults = [Fault(status=501), Fault(stall=0.5)]
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda name: fetch_weights(name, tmp_path), (MICRON, SECOND)))
    for path, name in zip(paths, (MICRON, SECOND), strict=True):
        assert_weights(path, checkpoints(name.partition(".")[0]), name)
    assert server.paths() == [RELEASE, MODELS, MODELS, RELEASE]


def test_the_licence_is_logged_once(
    server: Server, tmp_path: Path, checkpoint: bytes, caplog: pytest.LogCaptureFixture
):
    server.release({"models.zip": models(checkpoint)})
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
        (f"downloads/{FOLDER}.zip", f"{FOLDER}/{CHECKPOINT}"),
        ("downloads/weights.zip", MEMBER),
    ],
)
def test_tree(tree: Path, tmp_path: Path, checkpoint: bytes, path: str, inside: str | None):
    put(tree, f"mobilevitv3_XS_e300_7671/{CHECKPOINT}", b"another model's")
    put(tree, "a.zip", b"broken, but not asked for by name")
    put(tree, "b.zip", zipped({"README.md": b""}))
    file = put(tree, path, zipped({inside: checkpoint}) if inside else checkpoint)
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
    server.release({"models.zip": models(checkpoint)})
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
    server.release({"models.zip": models(checkpoint)})
    model = timm.create_model(MICRON, pretrained=True, cache_dir=str(tmp_path))
    expected = converted(checkpoint, "mobilevitv3_xxs", WEIGHTS[MICRON].channel_order)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

import dataclasses
import hashlib
import io
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from archives import PACKERS, tarred, zipped
from fetched import APPLE_ROW, FOLDER, MICRON, assert_nothing_left, assert_weights, converted, read, unavailable
from huggingface_hub import constants
from servers import RELEASE, Fault, Server

from timm_mobilevit.weights.fetch import fetch_weights
from timm_mobilevit.weights.fetch.naming import CHECKPOINT
from timm_mobilevit.weights.pretrained import APPLE, WEIGHTS

# ---------------------------------------------------------------------------------------------------- from the release


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_per_model(server: Server, tmp_path: Path, checkpoint: bytes, kind: str):
    member = f"{FOLDER}/{CHECKPOINT}"
    asset = f"{FOLDER}.{kind}"
    server.release({"mobilevitv3_XS_e300_7671.zip": b"not asked for", asset: PACKERS[kind]({member: checkpoint})})
    record = assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert (record["asset"], record["member"]) == (asset, member)
    assert record["url"] == f"{server.url}/assets/{asset}"
    assert server.paths() == [RELEASE, f"/assets/{asset}"]


@pytest.mark.parametrize("asset", [f"{FOLDER}.pt", f"{FOLDER.lower()}_{CHECKPOINT}", f"{FOLDER.replace('_', '-')}.pth"])
def test_a_plain_file_per_model(server: Server, tmp_path: Path, checkpoint: bytes, asset: str):
    server.release({asset: checkpoint, f"{FOLDER}.tar": b"not asked for"})
    record = assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert (record["asset"], record["member"]) == (asset, None)


def test_an_archive_per_model_without_a_folder(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.zip": zipped({CHECKPOINT: checkpoint})})
    assert assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)["member"] == CHECKPOINT


def test_one_archive_of_all_models(server: Server, tmp_path: Path, checkpoints: Callable[[str], bytes]):
    names = [MICRON, "mobilevitv3_xxs_l2.micron_in1k"]
    files = {f"release/{WEIGHTS[name].folder}/{CHECKPOINT}": checkpoints(name.partition(".")[0]) for name in names}
    server.release({"models.tar.gz": tarred({**files, "release/README.md": b"hello"}, "w:gz", compresslevel=1)})
    for name in names:
        assert_weights(fetch_weights(name, tmp_path), checkpoints(name.partition(".")[0]), name)


def test_of_several_zips_only_the_right_one_is_downloaded(server: Server, tmp_path: Path, checkpoint: bytes):
    padding = {"padding": bytes(1_000_000)}
    right = zipped({f"imagenet/{FOLDER}/{CHECKPOINT}": checkpoint, **padding}, compression=0)
    server.release(
        {
            "segmentation.zip": zipped({"mobilevitv3_voc_1_0_0/checkpoint_ema_best.pt": checkpoint, **padding}, 0),
            "classification.zip": right,
            "detection.zip": zipped({"mobilevitv3_coco_1_0_0/checkpoint_ema_best.pt": checkpoint, **padding}, 0),
        }
    )
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert [path for path in server.paths() if server.sent(path)[-1] > 1_000_000] == ["/assets/classification.zip"] * 2
    assert server.sent("/assets/classification.zip") == [1 << 18, len(right)]


def test_zips_of_a_server_without_ranges(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release(
        {"a.zip": zipped({"x": b""}), "b.zip": b"no zip", "c.zip": zipped({f"{FOLDER}/{CHECKPOINT}": checkpoint})}
    )
    for name in ("a.zip", "b.zip", "c.zip"):
        server.asset(name).ranges = False
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


def test_tars_are_tried_smallest_first(server: Server, tmp_path: Path, checkpoint: bytes):
    right = {f"{FOLDER}/{CHECKPOINT}": checkpoint}
    server.release(
        {
            "everything.tar": tarred({**right, "padding": bytes(100_000)}, "w"),
            "other.tar": tarred({"README": b""}, "w"),
            "models.tar": tarred(right, "w"),
        }
    )
    assert assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)["asset"] == "models.tar"
    assert server.paths()[1:] == ["/assets/other.tar", "/assets/models.tar"]


def test_a_cut_download_is_completed_by_the_next_call(server: Server, tmp_path: Path, checkpoint: bytes):
    content = zipped({f"{FOLDER}/{CHECKPOINT}": checkpoint})
    server.release({f"{FOLDER}.zip": content})
    server.asset(f"{FOLDER}.zip").faults = [Fault(cut_after=len(content) // 2), *[Fault(status=503)] * 5]
    assert "503" in unavailable(tmp_path)
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)
    assert server.sent(f"/assets/{FOLDER}.zip")[-1] == len(content) - len(content) // 2


def test_the_release_is_asked_again_when_it_stumbles(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.pt": checkpoint})
    server.files[RELEASE].faults = [Fault(status=500), Fault(status=429, headers={"Retry-After": "1"})]
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


def test_the_token_is_for_the_api_only(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    server.release({f"{FOLDER}.pt": checkpoint})
    fetch_weights(MICRON, tmp_path)
    assert [request.headers.get("Authorization") for request in server.requests] == ["Bearer secret", None]


def test_the_checksum_that_the_release_states(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.pt": checkpoint}, digest=f"sha256:{hashlib.sha256(checkpoint).hexdigest()}")
    assert_weights(fetch_weights(MICRON, tmp_path / "good"), checkpoint)
    server.release({f"{FOLDER}.pt": checkpoint}, digest=f"sha256:{hashlib.sha256(b'other').hexdigest()}")
    assert "checksum" in unavailable(tmp_path / "bad")
    assert_nothing_left(tmp_path / "bad")


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
        {"README.md": b"hello", "mobilevitv3_XXS_L2_e300_7023.zip": b"another model"},
        {"models.zip": zipped({f"mobilevitv3_XXS_L2_e300_7023/{CHECKPOINT}": b""})},
        {"models.tar": b"broken"},
        {f"{FOLDER}.zip": zipped({f"mobilevitv3_XXS_voc_e50_7404/{CHECKPOINT}": b""})},
    ],
    ids=["none", "other names", "other folders", "broken", "wrong folder"],
)
def test_no_asset_holds_the_model(server: Server, tmp_path: Path, assets: dict[str, bytes]):
    server.release(assets)
    message = unavailable(tmp_path)
    assert f"holds {FOLDER} (assets: {', '.join(assets) or 'none'})" in message
    assert_nothing_left(tmp_path)


def test_a_wrong_length(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.pt": checkpoint})
    server.asset(f"{FOLDER}.pt").content += b"more"
    assert f"expected {len(checkpoint)} bytes, the server offers {len(checkpoint) + 4}" in unavailable(tmp_path)
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
    member = f"{FOLDER}/{CHECKPOINT}"
    for content, complaint in broken_checkpoints(checkpoints).values():
        server.release({f"{FOLDER}.zip": zipped({member: content})})
        message = unavailable(tmp_path / "cache")
        assert complaint in message
        assert f"/assets/{FOLDER}.zip ({member}): " in message
        assert_nothing_left(tmp_path / "cache")
    assert not Path("ran").exists()


def test_a_truncated_archive(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.zip": zipped({f"{FOLDER}/{CHECKPOINT}": checkpoint})[:100_000]})
    assert f"{FOLDER}.zip is broken" in unavailable(tmp_path)
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
    assert (record["url"], record["asset"], record["member"]) == (url, "mobilevitv2-0.5.pt", None)

    server.files.clear()
    message = unavailable(tmp_path / "other", APPLE_ROW)
    assert "HTTP Error 404" in message


# -------------------------------------------------------------------------------------------------------------- cache


def test_the_next_call_makes_no_request(
    server: Server, tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
):
    server.release({f"{FOLDER}.pt": checkpoint})
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
    server.release({f"{FOLDER}.pt": checkpoint})
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
    server.release({f"{FOLDER}.pt": checkpoint})
    server.asset(f"{FOLDER}.pt").faults = [Fault(stall=0.5)]
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
    assert server.paths().count(f"/assets/{FOLDER}.pt") == 1


def test_what_a_killed_process_left_is_cleared(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.pt": checkpoint})
    work = tmp_path / "timm-mobilevit" / MICRON / "work"
    work.mkdir(parents=True)
    (work / "checkpoint.pt").write_bytes(b"half")
    assert_weights(fetch_weights(MICRON, tmp_path), checkpoint)


def test_the_licence_is_logged_once(
    server: Server, tmp_path: Path, checkpoint: bytes, caplog: pytest.LogCaptureFixture
):
    server.release({f"{FOLDER}.pt": checkpoint})
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
        (f"v1.0.0/imagenet/{FOLDER}/run/{CHECKPOINT}", None),
        (f"{FOLDER}.pt", None),
        (f"downloads/{FOLDER}.zip", CHECKPOINT),
        ("models.zip", f"all/{FOLDER}/{CHECKPOINT}"),
    ],
)
def test_tree(tree: Path, tmp_path: Path, checkpoint: bytes, path: str, inside: str | None):
    put(tree, f"mobilevitv3_XS_e300_7671/{CHECKPOINT}", b"another model's")
    put(tree, "a.zip", b"broken, but not asked for by name")
    put(tree, "b.zip", zipped({"README.md": b""}))
    file = put(tree, path, zipped({inside: checkpoint}) if inside else checkpoint)
    record = assert_weights(fetch_weights(MICRON, tmp_path / "cache"), checkpoint)
    assert (record["url"], record["asset"], record["member"]) == (None, file.name, inside)
    assert record["file"]["path"] == str(file)
    assert file.exists()


def test_the_tree_may_be_the_models_folder(tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "cache" / "timm-mobilevit" / MICRON, "download.part", b"left by a download that was cut off")
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
    server.release({f"{FOLDER}.pt": checkpoint})
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
    assert record["file"]["path"] == str(file)


@pytest.mark.parametrize("path", [f"{FOLDER}/{CHECKPOINT}", f"{FOLDER}.zip", f"{FOLDER}.pt"])
def test_a_broken_file_in_the_tree_is_an_error(server: Server, tree: Path, tmp_path: Path, path: str):
    put(tree, path, b"broken")
    assert Path(path).name in unavailable(tmp_path / "cache")
    assert not server.requests


@pytest.mark.parametrize("path", [f"{{}}/{FOLDER}/{CHECKPOINT}", f"{{}}/{FOLDER}.pt"])
def test_several_in_the_tree(tree: Path, tmp_path: Path, checkpoint: bytes, path: str):
    for copy in ("a", "b"):
        put(tree, path.format(copy), checkpoint)
    assert "expected one" in unavailable(tmp_path / "cache")


def test_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMM_MOBILEVIT_WEIGHTS", str(tmp_path / "missing"))
    with pytest.raises(NotADirectoryError, match=r"TIMM_MOBILEVIT_WEIGHTS=.*missing is not a directory"):
        fetch_weights(MICRON, tmp_path)


# -------------------------------------------------------------------------------------------------------- through timm


def test_pretrained_needs_no_manual_step(server: Server, tmp_path: Path, checkpoint: bytes):
    server.release({f"{FOLDER}.zip": zipped({f"{FOLDER}/{CHECKPOINT}": checkpoint})})
    model = timm.create_model(MICRON, pretrained=True, cache_dir=str(tmp_path))
    expected = converted(checkpoint, "mobilevitv3_xxs", WEIGHTS[MICRON].channel_order)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

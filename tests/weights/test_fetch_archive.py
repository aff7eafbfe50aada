import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import PACKERS, zipped

from timm_mobilevit.weights.fetch import archive as module
from timm_mobilevit.weights.fetch.archive import ARCHIVE, CHECKPOINT, folders, take_checkpoint
from timm_mobilevit.weights.pretrained import WEIGHTS

FOLDERS = [row.folder for row in WEIGHTS.values() if row.folder]
FOLDER = "mobilevitv3_S_e300_7930"
MEMBER = f"{FOLDER}/{CHECKPOINT}"


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    def pack(files: dict[str, bytes]) -> Path:
        path = tmp_path / f"asset.{request.param}"
        path.write_bytes(PACKERS[request.param](files))
        return path

    return pack


def take(archive: Path, folder: str = FOLDER) -> bytes | None:
    target = archive.parent / "target"
    member = take_checkpoint(archive, folder, target)
    assert target.exists() == (member is not None)
    return target.read_bytes() if member else None


@pytest.mark.parametrize("prefix", ["", "./", "models/MobileViTv3-v1/results_classification/", "mobilevitv3_1_0_0/"])
def test_every_model_out_of_one_archive(pack: Callable[[dict[str, bytes]], Path], prefix: str):
    # The folders of other tasks are there too, as they are in the release.
    others = [
        "mobilevitv3_S_voc_e50_7959",
        "mobilevitv3_voc_1_0_0",
        "mobilevitv3_ade20k_0_7_5",
        "mobilevitv3_coco_0_5_0",
    ]
    archive = pack(
        {f"{prefix}{folder}/{name}": f"{folder} {name}".encode() for folder in FOLDERS + others for name in
         (CHECKPOINT, "checkpoint_best.pt", "checkpoint_ema.pt", f"._{CHECKPOINT}", "logs.txt")}
    )  # fmt: skip
    for folder in FOLDERS:
        assert take(archive, folder) == f"{folder} {CHECKPOINT}".encode()
    assert folders(archive) == {*FOLDERS, *others}


@pytest.mark.parametrize(
    "path",
    [
        CHECKPOINT,
        f"X{MEMBER}",
        f"{FOLDER}/checkpoint_ema.pt",
        f"{FOLDER}/{CHECKPOINT}.txt",
        f"{FOLDER}/{CHECKPOINT}/data",
        f"{FOLDER}/mobilevitv3_S_voc_e50_7959/{CHECKPOINT}",
    ],
)
def test_paths_that_are_not_the_checkpoints(pack: Callable[[dict[str, bytes]], Path], path: str):
    assert take(pack({path: b"weights"})) is None


def test_several_that_fit(pack: Callable[[dict[str, bytes]], Path]):
    with pytest.raises(ValueError, match=r"expected one checkpoint_ema_best.pt of .*, found 2: a/.*, b/"):
        take(pack({f"a/{MEMBER}": b"1", f"b/{MEMBER}": b"2"}))


@pytest.mark.parametrize("name", [f"../{MEMBER}", f"/{MEMBER}", f"a/../../{MEMBER}", f"C:/{MEMBER}"])
def test_paths_that_lead_out_are_not_touched(pack: Callable[[dict[str, bytes]], Path], name: str):
    archive = pack({name: b"weights"})
    before = sorted(archive.parent.parent.rglob("*"))
    assert take(archive) is None
    assert sorted(archive.parent.parent.rglob("*")) == before


def test_zip_members_that_are_links(tmp_path: Path):
    info = zipfile.ZipInfo(MEMBER)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "asset.zip", "w") as archive:
        archive.writestr(info, "/etc/hostname")
    assert take(tmp_path / "asset.zip") is None


def test_zip_written_with_backslashes(tmp_path: Path):
    info = zipfile.ZipInfo("placeholder")
    info.filename = MEMBER.replace("/", "\\")
    with zipfile.ZipFile(tmp_path / "asset.zip", "w") as archive:
        archive.writestr(info, b"weights")
    assert take(tmp_path / "asset.zip") == b"weights"


def test_oversize_member(pack: Callable[[dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="is 1001 bytes large, expected at most 1000"):
        take(pack({MEMBER: bytes(1001)}))


def test_member_that_is_larger_than_it_declares(tmp_path: Path):
    honest = zipped({MEMBER: bytes(5_000_000)})
    size = (5_000_000).to_bytes(4, "little")
    assert honest.count(size) == 2
    (tmp_path / "asset.zip").write_bytes(honest.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"asset\.zip"):
        take_checkpoint(tmp_path / "asset.zip", FOLDER, tmp_path / "target")
    assert (tmp_path / "target").stat().st_size <= 1000


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_archive(pack: Callable[[dict[str, bytes]], Path], kept: float):
    # Two members, so that cutting off an archive's end also cuts the checkpoint.
    archive = pack({"notes.txt": b"x" * 5000, MEMBER: bytes(range(256)) * 4000})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=archive.name):
        take_checkpoint(archive, FOLDER, archive.parent / "target")


def test_flipped_bits(tmp_path: Path):
    content = bytearray(zipped({MEMBER: b"weights" * 1000}, zipfile.ZIP_STORED))
    content[500] ^= 1
    (tmp_path / "asset.zip").write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        take_checkpoint(tmp_path / "asset.zip", FOLDER, tmp_path / "target")


@pytest.mark.parametrize(("offset", "value"), [(0, 1), (2, 99)], ids=["encrypted", "unknown compression"])
def test_zip_that_python_cannot_read(tmp_path: Path, offset: int, value: int):
    content = bytearray(zipped({MEMBER: b"weights"}))
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # local and central: flags, then the method
        content[content.index(header) + flags + offset] = value
    (tmp_path / "asset.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken or no zip archive: .*(password|not supported)"):
        take_checkpoint(tmp_path / "asset.zip", FOLDER, tmp_path / "target")


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"])
def test_no_archive_at_all(tmp_path: Path, content: bytes):
    (tmp_path / "asset.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"asset\.zip is broken or no zip archive"):
        take(tmp_path / "asset.zip")


def test_an_error_of_the_disk_is_not_blamed_on_the_archive(pack: Callable[[dict[str, bytes]], Path], tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        take_checkpoint(pack({MEMBER: b"weights"}), FOLDER, tmp_path / "missing" / "target")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("models.zip", True),
        ("MobileViTv3-v1.ZIP", True),
        ("weights.tar.gz", False),
        (".123.models.zip", False),
        ("README.md", False),
        ("mobilevitv3.pt", False),
        ("../models.zip", False),
        ("a/models.zip", False),
        ("C:models.zip", False),
        ("a\0.zip", False),
        ("a\n.zip", False),
        ("\ud800.zip", False),
        ("x" * 300 + ".zip", False),
        (".zip", False),
    ],
)
def test_names_of_archives(name: str, expected: bool):
    """They become names of files."""
    assert bool(ARCHIVE.fullmatch(name)) == expected

import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import PACKERS, zipped

from timm_mobilevit.weights.fetch import archive as module
from timm_mobilevit.weights.fetch.archive import take_checkpoint, zip_directory
from timm_mobilevit.weights.fetch.naming import CHECKPOINT, belongs, is_named_after, model_key, rank, select
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


def take(archive: Path, folder: str = FOLDER, *, flat: bool = False) -> bytes | None:
    target = archive.parent / "target"
    member = take_checkpoint(archive, folder, target, flat=flat)
    assert target.exists() == (member is not None)
    return target.read_bytes() if member else None


@pytest.mark.parametrize("prefix", ["", "./", "release/imagenet1k/", "MobileViTv3-1.0.0/"])
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


def test_folder_below_the_models_folder(pack: Callable[[dict[str, bytes]], Path]):
    assert take(pack({f"{FOLDER}/train/run_1/{CHECKPOINT}": b"weights"})) == b"weights"


def test_other_spelling_of_the_folder(pack: Callable[[dict[str, bytes]], Path]):
    assert take(pack({f"MobileViTv3-s-e300-7930/{CHECKPOINT}": b"weights"})) == b"weights"


def test_no_folder_only_where_the_archive_is_named_after_the_model(pack: Callable[[dict[str, bytes]], Path]):
    archive = pack({CHECKPOINT: b"weights", "checkpoint_last.pt": b"last"})
    assert take(archive) is None
    assert take(archive, flat=True) == b"weights"


def test_another_models_folder_in_an_archive_named_after_the_model(pack: Callable[[dict[str, bytes]], Path]):
    assert take(pack({f"mobilevitv3_S_voc_e50_7959/{CHECKPOINT}": b"weights"}), flat=True) is None


def test_several_that_fit(pack: Callable[[dict[str, bytes]], Path]):
    with pytest.raises(ValueError, match=r"expected one checkpoint_ema_best.pt of .*, found 2: a/.*, b/"):
        take(pack({f"a/{MEMBER}": b"1", f"b/{MEMBER}": b"2"}))


@pytest.mark.parametrize("name", [f"../{MEMBER}", f"/{MEMBER}", f"a/../../{MEMBER}", f"C:/{MEMBER}"])
def test_paths_that_lead_out_are_not_touched(pack: Callable[[dict[str, bytes]], Path], name: str):
    archive = pack({name: b"weights"})
    before = sorted(archive.parent.parent.rglob("*"))
    assert take(archive) is None
    assert sorted(archive.parent.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_tar_members_that_are_no_files(tmp_path: Path, kind: bytes):
    (tmp_path / "secret").write_bytes(b"secret")
    with tarfile.open(tmp_path / "asset.tar", "w") as archive:
        info = tarfile.TarInfo(MEMBER)
        info.type, info.linkname = kind, str(tmp_path / "secret")
        archive.addfile(info)
    assert take(tmp_path / "asset.tar") is None


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
    with pytest.raises(ValueError, match=r"broken or no zip or tar archive: .*(password|not supported)"):
        take_checkpoint(tmp_path / "asset.zip", FOLDER, tmp_path / "target")


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"])
def test_no_archive_at_all(tmp_path: Path, content: bytes):
    (tmp_path / "asset.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"asset\.zip is broken or no zip or tar archive"):
        take(tmp_path / "asset.zip")


def test_an_error_of_the_disk_is_not_blamed_on_the_archive(pack: Callable[[dict[str, bytes]], Path], tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        take_checkpoint(pack({MEMBER: b"weights"}), FOLDER, tmp_path / "missing" / "target")


def test_directory_from_the_end_of_a_zip():
    names = [f"{folder}/{CHECKPOINT}" for folder in FOLDERS]
    content = zipped(dict.fromkeys(names, bytes(100_000)), zipfile.ZIP_STORED)
    assert zip_directory(content[-4096:]) == names
    assert zip_directory(content[-200:]) is None  # does not reach back to the directory's start
    assert zip_directory(b"<html>") is None


def test_the_keys_of_all_models_differ():
    assert len({model_key(folder) for folder in FOLDERS}) == len(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    "spelling", ["{}.zip", "{}.tar.gz", "{}.TGZ", "{}.pt", "{}_checkpoint_ema_best.pt", "{}-checkpoint_ema_best.pth"]
)
def test_every_spelling_names_its_model_and_no_other(folder: str, spelling: str):
    for name in (folder, folder.lower(), folder.replace("_", "-"), folder.replace("mobilevitv3", "MobileViTv3")):
        asset = spelling.format(name)
        assert [other for other in FOLDERS if is_named_after(asset, other)] == [folder]
        assert rank(asset, folder) in (0, 1)
        assert all(rank(asset, other) is None for other in FOLDERS if other != folder)


@pytest.mark.parametrize(
    ("asset", "folder", "expected"),
    [
        ("mobilevitv3_models.zip", FOLDER, 3),
        ("MobileViTv3-v1.tar.gz", FOLDER, 3),
        ("imagenet1k_mobilevitv3_S_e300_7930.tar", FOLDER, 2),
        ("imagenet1k_mobilevitv3_XS_e300_7671.tar", FOLDER, 3),
        ("mobilevitv3_voc_1_0_0.zip", "mobilevitv3_1_0_0", 4),
        ("mobilevitv3_S_voc_e50_7959.zip", FOLDER, 4),
        ("mobilevitv3_S_e300_7930_checkpoint_last.pt", FOLDER, None),
        ("mobilevitv3_S_e300_7930.log", FOLDER, None),
        ("README.md", FOLDER, None),
    ],
)
def test_rank(asset: str, folder: str, expected: int | None):
    assert rank(asset, folder) == expected


def test_belongs_goes_by_the_innermost_model():
    assert belongs(f"mobilevitv3_1_0_0/{MEMBER}", FOLDER)
    assert belongs(f"mobilevitv3_1_0_0/{MEMBER}", "mobilevitv3_1_0_0") is False
    assert belongs(f"MobileViTv3/weights/{CHECKPOINT}", FOLDER) is None


def test_select_wants_the_ema_best_file():
    assert select([f"{FOLDER}/checkpoint_ema.pt", f"{FOLDER}/checkpoint_best.pt"], FOLDER) is None

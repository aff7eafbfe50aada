"""Files that are written completely or not at all, and targets that are checked before the work."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from timm_mobilevit import _files
from timm_mobilevit._files import check_file, check_folder, claimed, filling, replacing

IS_ROOT = os.geteuid() == 0
WRITERS = {
    "torch.save": "torch.save({'weight': torch.zeros(10**6)}, file)",
    "safetensors": "save_file({'weight': torch.zeros(10**6)}, file)",
    "onnx": "onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], 'g', [], [], [array])), file)",
    "text": "file.write_text('0' * 10**6)",
    "picture": "Image.fromarray(np.random.default_rng(0).integers(256, size=(999, 999, 3), dtype=np.uint8)).save(file)",
}
SETUP = """
import sys
from pathlib import Path
import numpy as np, onnx, torch
from PIL import Image
from safetensors.torch import save_file
from timm_mobilevit._files import replacing
array = onnx.numpy_helper.from_array(np.zeros(10**6, np.float32), "weight")
"""


def tree(folder):
    """Every path below a folder, with the content of files."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def places(tmp_path):
    """What may stand where something is to be written."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("folder", {}, "is a folder; expected the name of a file"),
        ("file", {"force": False}, "exists; choose another name with --out, or overwrite it with --force"),
        ("dangling", {"force": False}, "exists; choose another name"),
        ("folder", {"force": False, "is_folder": True}, "exists; choose another name"),
        ("file", {"is_folder": True}, "is a file; expected the name of a folder"),
        ("dangling", {"is_folder": True}, "is a file; expected the name of a folder"),
        ("pipe", {}, "is a device or pipe"),
        ("/dev/null", {}, "is a device or pipe"),
        ("file/new", {}, "file is no folder"),
        ("file/deep/new", {}, "file is no folder"),
        ("dangling/new", {}, "dangling is no folder"),
    ],
)
def test_files_of_another_kind_are_refused(places, name, options, message):
    before = sorted(os.listdir(places))
    with pytest.raises(ValueError, match=message):
        check_file(places / name, **options)
    assert sorted(os.listdir(places)) == before


@pytest.mark.parametrize(
    ("name", "names", "options", "message"),
    [
        ("file", (), {}, "is a file; expected a folder"),
        ("dangling", (), {}, "is a file; expected a folder"),
        ("file/new", (), {}, "file is no folder"),
        (".", (), {"force": False}, "is not empty; choose another folder, or overwrite with --force"),
        (".", ("folder",), {}, "is a folder; expected the name of a file"),
        (".", ("file/a.png",), {}, "file is no folder"),
    ],
)
def test_folders_of_another_kind_are_refused(places, name, names, options, message):
    with pytest.raises(ValueError, match=message):
        check_folder(places / name, names, **options)


def test_what_can_be_written_passes_and_nothing_is_made(places):
    before = tree(places / "folder"), sorted(os.listdir(places))
    check_file(places / "file")
    check_file(places / "new" / "deep" / "model.onnx", force=False)
    check_file(places / "folder", is_folder=True)
    check_file(places / "dangling")
    check_folder(places / "folder", ["a.json", "deep/b.png"], force=False)
    check_folder(places / "new" / "deep", ["a.json"], force=False)
    assert (tree(places / "folder"), sorted(os.listdir(places))) == before


@pytest.mark.parametrize(
    "check",
    [check_file, check_folder, lambda path: check_folder(path.parent, [path.name])],
    ids=["file", "folder", "in"],
)
@pytest.mark.parametrize("path", ["/proc/new", "/sys/new", f"/tmp/{'x' * 300}", f"/tmp/{'x' * 300}/y"])
def test_places_where_even_root_cannot_write(check, path):
    with pytest.raises(OSError, match="cannot write /"):
        check(Path(path))


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a file system in memory; skips where that is not allowed."""
    made = []

    def mount(*options):
        folder = tmp_path / f"mount{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_that_is_read_only(mounted):
    folder = mounted()
    (folder / "there.onnx").write_text("mine")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for path in (folder / "there.onnx", folder / "new.onnx", folder / "deep" / "new.onnx"):
        with pytest.raises(OSError, match=f"cannot write {path}: Read-only file system"):
            check_file(path)
    with pytest.raises(OSError, match="Read-only file system"):
        check_folder(folder)
    with pytest.raises(OSError, match="Read-only file system"), claimed(folder):
        pass


def test_a_folder_that_is_a_file_system_of_its_own(mounted):
    """As the volumes of containers are: nothing can be moved into it from beside."""
    folder = mounted()
    check_folder(folder, ["a", "b"], force=False)
    with claimed(folder), filling(folder) as stage:
        (stage / "a").write_text("1")
        (stage / "b").write_text("2")
    assert tree(folder) == {"a": "1", "b": "2"}


@pytest.mark.skipif(not IS_ROOT, reason="only root can run as another user")
def test_another_users_folder(tmp_path):
    """In a process without root's rights."""
    readable = tmp_path / "readable"
    readable.mkdir()
    (readable / "there.json").write_text("theirs")
    for folder in (*readable.parents, readable):
        if folder.owner() == "root" and folder != Path("/") and str(folder) != "/tmp":
            folder.chmod(0o755)
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
import _files
from pathlib import Path
os.setgid(65534), os.setuid(65534)
folder = Path(sys.argv[2])
for check in (
    lambda: _files.check_file(folder / "there.json"),
    lambda: _files.check_file(folder / "new.json"),
    lambda: _files.check_folder(folder / "deep"),
):
    try:
        check()
    except PermissionError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, Path(_files.__file__).parent, readable], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"cannot write {readable / name}: Permission denied" for name in ("there.json", "new.json", "deep")
    ]


def test_what_is_written_beside_goes_along(tmp_path):
    (tmp_path / "model.bin").write_text("old")
    (tmp_path / "other").write_text("mine")
    with replacing(tmp_path / "model.xml") as temporary:
        assert temporary.name == "model.xml"
        temporary.write_text("1")
        temporary.with_suffix(".bin").write_text("2")
        assert tree(tmp_path)["model.bin"] == "old"
    assert tree(tmp_path) == {"model.bin": "2", "model.xml": "1", "other": "mine"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"model": None, "model/new": "new"}


def fill(folder, names, error=None):
    with filling(folder) as stage:
        for name in names:
            (stage / name).write_text("new")
        if error:
            raise error


def replace(path, error):
    with replacing(path) as temporary:
        temporary.write_text("new")
        raise error


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_all_is_as_it_was(tmp_path, kind):
    (tmp_path / "a").write_text("old")
    before = tree(tmp_path)
    with pytest.raises(kind):
        fill(tmp_path, "ab", kind())
    with pytest.raises(kind):
        replace(tmp_path / "new" / "deep" / "a", kind())
    assert tree(tmp_path) == before


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_an_error_between_two_moves_leaves_no_mix(tmp_path, monkeypatch, failing, kind):
    """Three new files take the places of two old ones: five moves, one of which fails."""
    for name in "ab":
        (tmp_path / name).write_text("old")
    before = tree(tmp_path)
    moves, move = iter(range(99)), os.replace

    def fail_once(source, target):
        if next(moves) == failing:
            raise kind("no")
        move(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(kind, match="no"):
        fill(tmp_path, "abc")
    assert tree(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_not_lost(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="a is a folder"):
        fill(tmp_path, "ab")
    assert tree(tmp_path) == {"a": None, "a/mine": "mine"}


def test_names_do_not_rest_on_the_process_number(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert tree(tmp_path) == {"a": "one"}


def run_full(code, folder, limit=100_000):
    """Run code in a process whose files can have so many bytes."""
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def test_a_full_disk_is_an_error_of_the_file_system_whatever_writes(tmp_path, mounted):
    """What the libraries raise is RuntimeError, SafetensorError and others, some without the name of the file."""
    pytest.importorskip("onnx")
    (tmp_path / "full").mkdir()
    code = SETUP + "for name in sys.argv[1:]:\n    folder = Path(name)\n"
    for writer in WRITERS.values():
        code += f"""
    try:
        with replacing(folder / "file.png") as file:
            {writer}
    except OSError as error:
        print(error)
"""
    done = run_full(code, tmp_path / "full")
    assert done.stdout.splitlines() == [f"cannot write {tmp_path}/full/file.png: File too large"] * 5, done.stderr
    assert tree(tmp_path / "full") == {}
    disk = mounted()
    done = subprocess.run([sys.executable, "-c", code, disk], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"cannot write {disk}/file.png: No space left on device"] * 5, done.stderr
    assert tree(disk) == {}


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("differs from PyTorch"), FileNotFoundError(2, "No such file", "missing.png")):
        with pytest.raises(type(error)) as caught:
            replace(tmp_path / "a", error)
        assert caught.value is error
    assert tree(tmp_path) == {}


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import _files
with _files.claimed(Path(sys.argv[2]), *sys.argv[3:]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_claim_keeps_other_processes_out_until_it_ends(tmp_path):
    folder = tmp_path / "new" / "deep"
    package = Path(_files.__file__).parent
    with subprocess.Popen([sys.executable, "-c", HOLD, package, folder, "a"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"another process is writing {folder}/a; wait"), claimed(folder, "a"):
            pass
        with claimed(folder, "b"):  # something else in the same folder
            check_folder(folder, force=False)  # a claim does not make it full
        holder.send_signal(signal.SIGKILL)
    with claimed(folder, "a"):  # what a killed process has left is no claim
        assert folder.is_dir()
    assert tree(folder) == {}


def test_a_claim_leaves_nothing(tmp_path):
    with claimed(tmp_path / "new" / "deep"):
        pass
    assert tree(tmp_path) == {}
    with claimed(tmp_path / "new" / "deep"):
        (tmp_path / "new" / "deep" / "a").write_text("1")
    assert tree(tmp_path) == {"new": None, "new/deep": None, "new/deep/a": "1"}

"""Where commands write: refused before the work, kept from other processes, and clean after a signal or a full disk."""

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from random_weights import randomise
from safetensors.torch import load_file
from typer.testing import CliRunner

import timm_mobilevit.cli as cli
from timm_mobilevit._files import claimed
from timm_mobilevit.cli import app
from timm_mobilevit.export.formats import FORMATS

ARCH = "mobilevitv3_xxs"


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with checkpoints of two and of three classes, and images of two classes."""
    folder = tmp_path_factory.mktemp("files")
    for classes in (2, 3):
        torch.save(randomise(timm.create_model(ARCH, num_classes=classes)).state_dict(), folder / f"{classes}.pth")
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (200, 0, 0)).save(folder / "images" / name / f"{name}.png")
    return folder


def commands(files):
    """Every command that writes, as its arguments without --out, and the name of what it writes."""
    model, images = ("--model", ARCH, "--checkpoint", files / "missing.pth"), files / "images"
    yield "folder", ("convert", files / "missing.pth", "--arch", ARCH), "out"
    yield "file", ("convert", files / "missing.pth", "--config", "ssdlite_mobilevitv3-xxs"), "out.pth"
    yield "folder", ("evaluate", images, *model), "out"
    yield "folder", ("attention", images, *model), "out"
    yield "file", ("recipe", "copy", "mobilevitv3_xxs.micron_in1k"), "out.yaml"
    dense = ("--config", "ssdlite_mobilevitv3-xxs", "--checkpoint", files / "missing.pth")
    yield "folder", ("predict", images, *dense), "out"
    yield "folder", ("export", "web", ARCH, "--checkpoint", files / "missing.pth"), "out"
    for name, form in FORMATS.items():
        kind = "folder as a whole" if form.is_folder else "file"
        yield kind, ("export", name, ARCH, "--checkpoint", files / "missing.pth"), f"out{form.ending}"


COMMANDS = list(commands(Path("FILES")))


@pytest.fixture(params=range(len(COMMANDS)), ids=[" ".join(map(str, args[:1] + args[-1:])) for _, args, _ in COMMANDS])
def command(request, files):
    """A command whose work would end with another error at once: its weights are missing."""
    return list(commands(files))[request.param]


def test_every_command_that_writes_is_here():
    """Every one with an option --out."""
    import typer

    def with_out(group, *above):
        for name, found in getattr(group, "commands", {}).items():
            yield from with_out(found, *above, name)
        if any("--out" in parameter.opts for parameter in group.params):
            yield above

    tested = {" ".join(args[: 2 if args[0] in ("recipe", "export") else 1]) for _, args, _ in COMMANDS}
    assert {" ".join(above) for above in with_out(typer.main.get_command(app))} == tested


def refused(args, out, *messages):
    done = run(*args, "--out", out)
    assert done.exit_code == 1, (done.output, done.exception)
    assert done.stderr.startswith("error: "), done.output
    assert done.stderr.count("\n") == 1
    assert any(message in done.stderr for message in messages), done.stderr
    assert done.stdout == ""


def test_targets_are_checked_before_the_work(command, tmp_path):
    kind, args, name = command
    (tmp_path / "file").write_text("mine")
    refused(args, tmp_path / "file" / name, "file is no folder")
    refused(args, tmp_path / "file" / "deep" / name, "file is no folder")
    refused(args, Path("/proc") / name, f"cannot write /proc/{name}: ")
    refused(args, Path("/sys/deep") / name, f"cannot write /sys/deep/{name}: ")
    refused(args, tmp_path / ("x" * 300 + name), "File name too long")
    if args[0] != "attention":  # which writes files that do not belong together
        claim = (tmp_path / name, CLAIMS.get(args[0], "")) if kind == "folder" else (tmp_path, name)
        with claimed(*claim):
            refused(args, tmp_path / name, "another process is writing")
    assert sorted(os.listdir(tmp_path)) == ["file"]
    if kind == "file":
        (tmp_path / name).mkdir()
        refused(args, tmp_path / name, "is a folder; expected the name of a file")
        (tmp_path / name).rmdir()
        (tmp_path / name).write_text("mine")
        refused(args, tmp_path / name, "exists; choose another name with --out, or overwrite it with --force")
    elif kind == "folder as a whole":
        (tmp_path / name).mkdir()
        refused(args, tmp_path / name, "exists; choose another name with --out, or overwrite it with --force")
        (tmp_path / name).rmdir()
        (tmp_path / name).write_text("mine")
        refused([*args, "--force"], tmp_path / name, "is a file; expected the name of a folder")
    else:
        (tmp_path / name).write_text("mine")
        refused(args, tmp_path / name, "is a file; expected a folder")
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == sorted(["file", name])


CLAIMS = {"evaluate": "evaluate"}


def test_a_good_target_lets_the_work_begin(command, tmp_path):
    """Or the test above would pass for commands that refuse everything."""
    _, args, name = command
    done = run(*args, "--out", tmp_path / "new" / name)
    if args[0] == "recipe":  # which needs no weights
        assert done.exit_code == 0, done.output
        assert len(list((tmp_path / "new").rglob("*.*"))) == 1
    else:
        assert done.exit_code == 1, done.output
        assert re.search("no checkpoint file|in the cache|not installed|No module named", done.stderr), done.output
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "args"),
    [
        (["out/evaluate.csv"], ("evaluate", "IMAGES", "--model", ARCH)),
        (["out/cat-stage5.png"], ("attention", "IMAGES", "--model", ARCH)),
        (["out/config.json"], ("convert", "IMAGES", "--arch", ARCH, "--force")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_names_in_the_folder_are_checked_too(names, args, files, tmp_path):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    refused([files / "images" if arg == "IMAGES" else arg for arg in args], tmp_path / "out", "is a folder; expected")


def test_names_of_pictures_are_checked_before_the_weights_are_read(files, tmp_path):
    pytest.importorskip("mmdet")
    (tmp_path / "out" / "dog").mkdir(parents=True)
    (tmp_path / "out" / "cat").write_text("mine")
    args = ("predict", files / "images", "--config", "ssdlite_mobilevitv3-xxs", "--checkpoint", files / "missing.pth")
    refused(args, tmp_path / "out", "is not empty; choose another folder, or overwrite with --force")
    refused((*args, "--force"), tmp_path / "out", "cannot write", "out/cat is no folder")  # of cat/cat.png
    (tmp_path / "out" / "cat").unlink()
    (tmp_path / "out" / "dog" / "dog.png").mkdir()
    refused((*args, "--force"), tmp_path / "out", "dog.png is a folder; expected the name of a file")


@pytest.mark.parametrize(
    ("args", "name", "message"),
    [
        *((("export", to, ARCH), "model.txt", f"ends in {form.ending}") for to, form in FORMATS.items()),
        (("export", "onnx", ARCH), "model", "expected a name that ends in .onnx for ONNX"),
        (("export", "onnx", ARCH), ".onnx", "expected a name that ends in .onnx for ONNX"),
        (("export", "onnx", ARCH), "model.onnx.txt", "expected a name that ends in .onnx for ONNX"),
        (("export", "onnx", ARCH), "model.tflite", "expected a name that ends in .onnx for ONNX"),
        (("convert", "model.pth", "--config", "ssdlite_mobilevitv3-xxs"), "model.onnx", "is the .pth file to write"),
        (("convert", "model.pth", "--arch", ARCH), "model.safetensors", "model.safetensors is the name of a file"),
        (("convert", "model.pth", "--arch", ARCH), "model.pth.tar", "model.pth.tar is the name of a file"),
        (("convert", "model.pth", "--arch", ARCH), "model.onnx", "model.onnx is the name of a file"),
    ],
)
def test_endings(args, name, message, tmp_path):
    refused(args, tmp_path / name, message)
    assert os.listdir(tmp_path) == []


def test_what_another_process_has_written_since_the_check_is_not_overwritten(tmp_path, monkeypatch):
    """It has the claim between the check and this process's own claim."""
    out = tmp_path / "recipe.yaml"

    @contextmanager
    def late(*args):
        out.write_text("theirs")
        yield

    monkeypatch.setattr("timm_mobilevit.cli._targets.claimed", late)
    refused(("recipe", "copy", "mobilevitv3_xxs.micron_in1k"), out, "exists; choose another name")
    assert out.read_text() == "theirs"


@pytest.mark.parametrize("name", ["out.bin", "out.xml.json"])
def test_files_that_belong_to_an_exported_one_are_not_overwritten_unasked(name, tmp_path):
    (tmp_path / name).write_text("mine")
    refused(("export", "openvino", ARCH), tmp_path / "out.xml", f"{name} exists; choose another name")
    assert (tmp_path / name).read_text() == "mine"


# ------------------------------------------------------------------------------------------------------- a full disk


def run_full(*args, limit):
    """Run a command in a process whose files can have so many bytes."""
    return subprocess.run(
        [sys.executable, "-c", "from timm_mobilevit.cli import main; main()", *map(str, args)],
        capture_output=True,
        text=True,
        # coverage would write its own file, and say that it cannot
        env={key: value for key, value in os.environ.items() if not key.startswith("COV")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def test_convert_says_that_the_disk_is_full(files, tmp_path):
    done = run_full("convert", files / "2.pth", "--arch", ARCH, "--out", tmp_path / "new" / "out", limit=100_000)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: cannot write {tmp_path}/new/out: File too large\n"
    assert os.listdir(tmp_path) == []


def test_results_are_on_the_screen_though_the_disk_is_full(files, tmp_path):
    args = ("evaluate", files / "images", "--model", ARCH, "--checkpoint", files / "2.pth", "--workers", 0)
    done = run_full(*args, "--img-size", 64, "--out", tmp_path / "out", limit=100)
    assert done.returncode == 1
    assert done.stdout.startswith("rgb: top-1 50.00 %"), done.stderr
    assert done.stderr == f"error: cannot write {tmp_path}/out: File too large\n"
    assert os.listdir(tmp_path) == []
    done = run_full(*args, "--img-size", 64, "--out", tmp_path / "out", "--json", limit=100)
    assert done.returncode == 1
    assert json.loads(done.stdout)["results"][0]["top1"] == 50


def test_results_are_in_the_files_though_the_screen_is_gone(files, tmp_path, monkeypatch):
    def gone(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("typer.echo", gone)
    args = ("evaluate", files / "images", "--model", ARCH, "--checkpoint", files / "2.pth", "--workers", 0)
    run(*args, "--img-size", 64, "--out", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["evaluate.csv", "evaluate.json"]


# --------------------------------------------------------------------------------------------- several at once, signals


def convert_many(barrier, checkpoint, folder, rounds, results):
    """Run in a process: convert into one folder per round, all processes at once."""
    torch.set_num_threads(1)
    for i in range(rounds):
        barrier.wait(120)
        args = ["convert", str(checkpoint), "--arch", ARCH, "--out", str(folder / str(i))]
        done = CliRunner().invoke(app, [*args, "--force"] if i % 2 else args)
        results.put((i, done.exit_code, done.output))


def test_of_two_that_convert_into_one_folder_one_wins_whole(files, tmp_path):
    """With --force every second time."""
    rounds = 12
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm_mobilevit.mobilevit_zoo", "timm_mobilevit.cli._labels"])
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=convert_many, args=(barrier, files / f"{classes}.pth", tmp_path, rounds, results))
        for classes in (2, 3)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in range(2 * rounds)]
    for process in processes:
        process.join(60)
    for i in range(rounds):
        codes = sorted(code for number, code, _ in found if number == i)
        assert codes == [0, 1] or (codes == [0, 0] and i % 2), [row for row in found if row[0] == i]
        config = json.loads((tmp_path / str(i) / "config.json").read_text())
        weights = load_file(tmp_path / str(i) / "model.safetensors")
        assert config["num_classes"] == len(weights["head.fc.bias"])
        assert sorted(os.listdir(tmp_path / str(i))) == ["config.json", "model.safetensors"]
    for _, code, output in found:
        assert code == 0 or "another process is writing" in output or "is not empty; choose" in output


SLOW = """
import signal, sys, time
# A suite in the background ignores the first, one of nohup the second, and so would its child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import timm.models
import timm_mobilevit.mobilevit_zoo
from timm_mobilevit.cli import main
save = timm.models.save_for_hf

def slow(model, folder, **options):
    save(model, folder, **options)
    print("writing", flush=True)
    time.sleep(60)

timm.models.save_for_hf = slow
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_as_ctrl_c_does(files, tmp_path, name, code):
    args = ("convert", files / "2.pth", "--arch", ARCH, "--out", tmp_path / "new" / "out")
    with subprocess.Popen([sys.executable, "-c", SLOW, *args], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        assert list(tmp_path.rglob("model.safetensors"))
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == code
    assert os.listdir(tmp_path) == []


def test_signals_are_handled_while_a_command_runs_and_no_longer(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "app", lambda **_: seen.extend(map(signal.getsignal, (signal.SIGTERM, signal.SIGHUP))))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        cli.main()
        assert callable(seen[0])
        assert seen[1] is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        seen.clear()
        thread = threading.Thread(target=cli.main)
        thread.start()
        thread.join()
        assert seen == [signal.SIG_DFL, signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)

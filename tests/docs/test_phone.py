"""docs/phone.md: its commands run on the digit scans, and the file answers as the model does.

Without timm's scripts, which TIMM_SCRIPTS=DIR names, the first command's result is replaced by an untrained model.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
from markdown_it import MarkdownIt

from benchmarks.digits_data import write_digits
from timm_mobilevit.export.formats import FORMATS

ROOT = Path(__file__).parents[2]
CHECKPOINT = Path("output/train/digits/model_best.pth.tar")


def run(command, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def blocks():
    """The page on the phone, and the app: the commands of each."""
    tokens = MarkdownIt().parse((ROOT / "docs" / "phone.md").read_text(encoding="utf-8"))
    page, _, app = (token.content for token in tokens if token.type == "fence" and token.info == "bash")
    return [block.replace("\\\n", " ").splitlines() for block in (page, app)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, blocks):
    """Where the commands run, the model trained."""
    folder = tmp_path_factory.mktemp("phone")
    write_digits(folder / "images")
    names, train = blocks[0][:2]
    run(names, folder)
    assert (folder / "classes.txt").read_text() == "".join(f"{digit}\n" for digit in range(10))
    if scripts := os.environ.get("TIMM_SCRIPTS"):
        run(train.replace(" train.py ", f" {Path(scripts).resolve() / 'train.py'} "), folder)
    else:
        model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        (folder / CHECKPOINT).parent.mkdir(parents=True)
        torch.save({"state_dict": model.state_dict(), "arch": "mobilevitv3_xxs"}, folder / CHECKPOINT)
    return folder


def test_five_commands_lead_to_a_page(blocks, folder):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    *_, export, serve = blocks[0]
    assert len(blocks[0]) == 5
    run(export, folder)
    assert {path.name for path in (folder / "site" / "onnx").iterdir()} == {"model.onnx", "model_quantized.onnx"}
    config = json.loads((folder / "site" / "config.json").read_text())
    assert list(config["id2label"].values()) == [str(digit) for digit in range(10)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *shlex.split(serve)[1:], "--bind", "127.0.0.1", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}") as response:
                        assert "<h1>Classify pictures</h1>" in response.read().decode()
                    break
                except urllib.error.URLError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            server.terminate()


@pytest.mark.export
def test_app(blocks, folder):
    for name in ("litert", "coreml"):
        try:
            FORMATS[name].require()
        except ImportError as error:
            pytest.skip(str(error))
    evaluate = blocks[0][2]
    *export, evaluate_file = blocks[1]
    (of_model,) = json.loads(run(f"{evaluate} --json", folder))["results"]
    for command in export:
        run(command, folder)
    (of_file,) = json.loads(run(f"{evaluate_file} --json", folder))["results"]
    assert of_file["images"] == of_model["images"] == 360
    assert of_file["top1"] == pytest.approx(of_model["top1"], abs=0.3)  # one image of 360
    assert of_file["loss"] == pytest.approx(of_model["loss"], abs=1e-3)
    if os.environ.get("TIMM_SCRIPTS"):
        assert of_model["top1"] > 90
    facts = json.loads((folder / "digits.tflite.json").read_text())
    assert facts["labels"] == [str(digit) for digit in range(10)]
    assert (folder / "digits.mlpackage").is_dir()

"""docs/phone.md: its commands run on the digit scans, and the file answers as the model does.

Without timm's scripts, which TIMM_SCRIPTS=DIR names, the first command's result is replaced by an untrained model.
"""

import json
import os
import subprocess
import sys
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


@pytest.mark.export
def test_five_commands(tmp_path):
    for name in ("litert", "coreml"):
        try:
            FORMATS[name].require()
        except ImportError as error:
            pytest.skip(str(error))
    write_digits(tmp_path / "images")
    (tmp_path / "classes.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    tokens = MarkdownIt().parse((ROOT / "docs" / "phone.md").read_text(encoding="utf-8"))
    (block,) = (token.content for token in tokens if token.type == "fence" and token.info == "bash")
    train, evaluate, *export, evaluate_file = block.replace("\\\n", " ").splitlines()
    scripts = os.environ.get("TIMM_SCRIPTS")
    if scripts:
        run(train.replace(" train.py ", f" {Path(scripts).resolve() / 'train.py'} "), tmp_path)
    else:
        model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        (tmp_path / CHECKPOINT).parent.mkdir(parents=True)
        torch.save({"state_dict": model.state_dict(), "arch": "mobilevitv3_xxs"}, tmp_path / CHECKPOINT)
    (of_model,) = json.loads(run(f"{evaluate} --json", tmp_path))["results"]
    for command in export:
        run(command, tmp_path)
    (of_file,) = json.loads(run(f"{evaluate_file} --json", tmp_path))["results"]
    assert of_file["images"] == of_model["images"] == 360
    assert of_file["top1"] == pytest.approx(of_model["top1"], abs=0.3)  # one image of 360
    assert of_file["loss"] == pytest.approx(of_model["loss"], abs=1e-3)
    if scripts:
        assert of_model["top1"] > 90
    facts = json.loads((tmp_path / "digits.tflite.json").read_text())
    assert facts["labels"] == [str(digit) for digit in range(10)]
    assert (tmp_path / "digits.mlpackage").is_dir()

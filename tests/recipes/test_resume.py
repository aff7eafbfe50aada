"""A run of timm's train.py that is killed in mid-epoch and resumed ends where an unbroken one does.

``tests/mm/test_train.py`` has the same for mmengine.
"""

import csv
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.digits_data import write_digits
from timm_mobilevit.recipes import find_recipe

ROOT = Path(__file__).parents[2]
EPOCHS = 4
KILLED_IN = 2  # after epochs 0 and 1
SMALL = (
    "--config recipe.yaml --data-dir digits --train-split train --val-split val --num-classes 10 --device cpu -j 0 "
    "--img-size 64 -b 8 --train-img-sizes 40 64 --train-batch-sizes 16 8 --crop-pct 1 --scale 0.7 1 --hflip 0 "
    f"--epochs {EPOCHS} --warmup-epochs 1 --lr 0.004 --model-ema-decay 0.5 --output ."
)
# train.py does not store the state of random generators. Seeding them anew in every epoch makes up for it, so that an
# unbroken and a resumed run can be compared number by number.
WITNESS = """
import os, runpy, signal, sys
from timm.data import ScheduledBatchSampler
from timm.utils import random_seed

set_epoch, batches = ScheduledBatchSampler.set_epoch, ScheduledBatchSampler.__iter__

def seed_and_set_epoch(self, epoch):
    random_seed(epoch)
    set_epoch(self, epoch)

def batches_until_killed(self):
    for step, batch in enumerate(batches(self)):
        if self.epoch == int(os.environ["KILLED_IN"]) and step == len(self) // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

ScheduledBatchSampler.set_epoch = seed_and_set_epoch
ScheduledBatchSampler.__iter__ = batches_until_killed
runpy.run_path(os.environ["TRAIN"], run_name="__main__")
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        "TIMM_SCRIPTS" not in os.environ,
        reason="timm's wheel is without train.py, and TIMM_SCRIPTS=DIR names no folder that has it",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with a few of the digit scans, the recipe without what only a GPU can do, and the witness."""
    scans = write_digits(tmp_path / "all")
    for split, count in (("train", 24), ("val", 8)):
        for digit in (scans / split).iterdir():
            (tmp_path / "digits" / split / digit.name).mkdir(parents=True)
            for file in sorted(digit.iterdir())[:count]:
                shutil.copy(file, tmp_path / "digits" / split / digit.name)
    recipe = find_recipe("mobilevitv3_xxs").read_text()
    assert "\namp: true\n" in recipe
    (tmp_path / "recipe.yaml").write_text(recipe.replace("\namp: true\n", "\n"))
    (tmp_path / "witness.py").write_text(WITNESS)
    return tmp_path


def train(folder: Path, *arguments: str, killed_in: int = EPOCHS) -> int:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TRAIN": str(Path(os.environ["TIMM_SCRIPTS"]).resolve() / "train.py"),
        "KILLED_IN": str(killed_in),
    }
    command = [sys.executable, "-m", "timm_mobilevit.run", "witness.py", *shlex.split(SMALL), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """Losses, accuracies and learning rate of every epoch; a resumed run writes the titles once more."""
    with (run / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] != "epoch"]
    assert len({row["epoch"] for row in rows}) == len(rows)
    return {int(row.pop("epoch")): {key: float(value) for key, value in row.items()} for row in rows}


def test_killed_run_resumes_and_ends_with_the_same_metrics(folder: Path) -> None:
    assert train(folder, "--experiment", "unbroken") == 0
    unbroken = metrics(folder / "unbroken")
    assert list(unbroken) == list(range(EPOCHS))
    assert unbroken[EPOCHS - 1]["eval_top1"] > 20  # twice what guessing gives: there is something to lose

    assert train(folder, "--experiment", "killed", killed_in=KILLED_IN) == -9
    assert list(metrics(folder / "killed")) == list(range(KILLED_IN))
    assert train(folder, "--experiment", "killed", "--resume", "killed/last.pth.tar") == 0
    resumed = metrics(folder / "killed")
    assert list(resumed) == list(range(EPOCHS))
    for epoch, expected in unbroken.items():
        assert resumed[epoch] == pytest.approx(expected, rel=1e-3)

"""What docs/finetuning.md says of trainings: the average of the weights, and checkpointing."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from markdown_it import MarkdownIt
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import ModelEmaV3, random_seed
from torch import nn
from typer.testing import CliRunner

from benchmarks.digits import make_loaders
from benchmarks.digits_data import write_digits
from timm_mobilevit.cli import app

ROOT = Path(__file__).parents[2]
ARCH = "mobilevitv3_xxs"
EPOCHS = 8


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A quarter of the digit scans to train on, and all others to validate on."""
    root = tmp_path_factory.mktemp("scans")
    everything = write_digits(root / "all")
    for digit in (everything / "train").iterdir():
        target = root / "few" / "train" / digit.name
        target.mkdir(parents=True)
        for file in sorted(digit.iterdir())[::4]:
            shutil.copy(file, target)
    shutil.copytree(everything / "val", root / "few" / "val")
    return root / "few"


def top1(scans, checkpoint, *options):
    """What `evaluate` measures in percent, and what it says on stderr."""
    arguments = ("evaluate", scans, "--model", ARCH, "--checkpoint", checkpoint, "--img-size", 64, "--crop-pct", 1)
    done = CliRunner().invoke(app, [str(word) for word in (*arguments, "--workers", 0, "--json", *options)])
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)["results"]
    assert result["images"] == 360
    return result["top1"], done.stderr


@pytest.mark.long
def test_average_with_warm_up_is_as_good_as_the_raw_weights(scans, tmp_path):
    """As timm's train.py trains, averages and saves; beside it the average with timm's decay and no warm-up."""
    random_seed(0)
    model = timm.create_model(ARCH, num_classes=10)
    train, _ = make_loaders(scans, resolve_data_config({"img_size": 64, "crop_pct": 1.0}, model=model), batch_size=16)
    task = ClassificationTask(model)
    averages = {warmup: ModelEmaV3(model, decay=0.9998, use_warmup=warmup) for warmup in (True, False)}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=4e-3)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=EPOCHS, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=len(train)
    )
    updates = 0
    for _ in range(EPOCHS):
        task.train()
        for images, labels in train:
            optimizer.zero_grad()
            task(images, labels)["loss"].backward()
            optimizer.step()
            updates += 1
            scheduler.step_update(updates)
            for average in averages.values():
                average.update(model, step=updates)
    assert updates == 176
    for warmup, average in averages.items():
        entries = {"state_dict": model.state_dict(), "state_dict_ema": average.module.state_dict()}
        torch.save({"epoch": EPOCHS - 1, "arch": ARCH, "version": 2, **entries}, tmp_path / f"{warmup}.pth.tar")

    raw, _ = top1(scans, tmp_path / "True.pth.tar", "--entry", "state_dict")
    with_warmup, said = top1(scans, tmp_path / "True.pth.tar")
    without, _ = top1(scans, tmp_path / "False.pth.tar")
    print(raw, with_warmup, without)
    assert raw > 90
    assert abs(raw - with_warmup) <= 1
    assert without < 20
    assert "state_dict_ema" in said
    assert "--entry state_dict" in said


@pytest.mark.long
@pytest.mark.skipif("TIMM_SCRIPTS" not in os.environ, reason="TIMM_SCRIPTS=DIR names no folder with timm's scripts")
def test_command_of_the_page(scans, tmp_path):
    """Without what it downloads and what needs a GPU, on smaller images."""
    tokens = MarkdownIt().parse((ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8"))
    (command,) = (token.content for token in tokens if token.type == "fence" and "--model-ema" in token.content)
    words = [word for word in shlex.split(command.replace("\\\n", " ")) if word not in ("--pretrained", "--amp")]
    words[words.index("train.py")] = str(Path(os.environ["TIMM_SCRIPTS"]).resolve() / "train.py")
    words[words.index("images")] = str(scans)
    small = f"--model {ARCH} --img-size 64 --crop-pct 1 --scale 0.7 1 --hflip 0 --color-jitter 0 --lr 4e-3 -b 16"
    small += " --layer-decay 1 --epochs 12 --warmup-epochs 1 -j 0 --device cpu --output . --experiment run"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words[1:], *small.split()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    average, _ = top1(scans, tmp_path / "run" / "last.pth.tar")
    raw, _ = top1(scans, tmp_path / "run" / "last.pth.tar", "--entry", "state_dict")
    assert raw > 90
    assert abs(raw - average) <= 1


@pytest.mark.parametrize("arch", [ARCH, "mobilevitv2_0_5", "mobilevit_xxs"])
def test_checkpointing_counts_each_batch_twice_in_the_stages(arch):
    model = timm.create_model(arch, num_classes=2).train()
    model.set_grad_checkpointing()
    norm = next(module for module in model.stages.modules() if isinstance(module, nn.BatchNorm2d))
    means = []
    norm.register_forward_pre_hook(lambda module, args: means.append(args[0].mean((0, 2, 3)).detach()))
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    counts = {int(m.num_batches_tracked) for m in model.stages.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {2}
    torch.testing.assert_close(norm.running_mean, 0.19 * means[0], rtol=1e-4, atol=1e-6)

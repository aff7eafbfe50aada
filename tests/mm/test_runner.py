"""Our runner: without a GPU, and on data sets that give no iteration or no end."""

import json
import math
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
import torch
from mm_shapes import shapes_config, write_shapes
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import RUNNERS
from torch import nn

from timm_mobilevit.mm import MobileViTRunner
from timm_mobilevit.mm import runner as module

ROOT = Path(__file__).parents[2]


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.norm = nn.SyncBatchNorm(3)

    def forward(self, inputs, mode):
        return {"loss": self.norm(torch.stack(list(inputs))).sum()}


def runner(folder, images=8, sampler="DefaultSampler", **options):
    return MobileViTRunner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader={
            "dataset": [{"inputs": torch.ones(3)}] * images,
            "batch_size": 4,
            "drop_last": True,
            "sampler": {"type": sampler, "shuffle": False},
        },
        experiment_name=f"{folder.name}-{images}-{sampler}",
        default_hooks={"checkpoint": None},
        **{
            "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 1},
            "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}},
            **options,
        },
    )


@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "mmengine.AmpOptimWrapper", AmpOptimWrapper])
def test_mixed_precision_becomes_float32_without_a_gpu(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "get_device", lambda: "cpu")
    options = {"type": kind, "loss_scale": "dynamic", "dtype": "float16", "clip_grad": {"max_norm": 2}}
    built = runner(tmp_path).build_optim_wrapper({**options, "optimizer": {"type": "SGD", "lr": 0.1}})
    assert type(built) is OptimWrapper
    assert built.clip_grad_kwargs == {"max_norm": 2}


def test_with_a_gpu_nothing_changes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module.Runner, "build_optim_wrapper", lambda self, wrapper: seen.append(wrapper))
    trainer = runner(tmp_path)
    monkeypatch.setattr(module, "get_device", lambda: "cuda")
    wrapper = {"type": "AmpOptimWrapper", "loss_scale": "dynamic"}
    trainer.build_optim_wrapper(wrapper)
    assert seen == [wrapper]


def test_trainings_without_end_or_iteration_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no iteration: its data set has 3 images, a batch 4, and drop_last=True"):
        runner(tmp_path, images=3).train()
    with pytest.raises(ValueError, match=r"has no end, because its sampler is InfiniteSampler: set sampler=dict"):
        runner(tmp_path, sampler="InfiniteSampler").train()
    runner(tmp_path, images=4).train()


COSINE = {"type": "CosineAnnealingLR"}


@pytest.mark.parametrize("schedule", [COSINE, [COSINE], {"first": [{**COSINE, "by_epoch": True}]}])
def test_a_rate_by_epochs_in_a_training_by_iterations_is_refused(schedule, tmp_path):
    options = {"param_scheduler": schedule, "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 4}}
    with pytest.raises(ValueError, match=r"param_scheduler counts epochs, .*set train_cfg=.*by_epoch=False"):
        runner(tmp_path, **options).train()


def test_a_training_by_iterations_as_the_messages_say(tmp_path):
    schedule = [{**COSINE, "by_epoch": False}]
    trainer = runner(
        tmp_path,
        sampler="InfiniteSampler",
        param_scheduler=schedule,
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": 4},
    )
    trainer.train()
    assert trainer.optim_wrapper.get_lr()["lr"] == pytest.approx([0.1 * (1 + math.cos(math.pi * 3 / 4)) / 2])


@pytest.mark.long
def test_two_processes_by_the_printed_command(tmp_path):
    """``torchrun … train.py CONFIG --launcher pytorch`` on CPUs, with a config for NCCL and mixed precision."""
    root = write_shapes(tmp_path / "shapes", train=8, val=2, size=(64, 80))
    config = tmp_path / "mine.py"
    config.write_text(shapes_config("deeplabv3_mobilevitv3-0.5-d16", root, epochs=2, batch=2, size=64))
    parsed = Config.fromfile(config)
    assert (parsed.env_cfg.dist_cfg.backend, parsed.sync_bn) == ("nccl", "torch")
    assert parsed.optim_wrapper.type == "AmpOptimWrapper"
    assert RUNNERS.get(parsed.runner_type) is MobileViTRunner
    tools = Path(mmseg.__file__).parent / ".mim" / "tools"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    work = tmp_path / "work"
    done = subprocess.run(
        [*torchrun, str(tools / "train.py"), str(config), "--launcher", "pytorch", "--work-dir", str(work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (work / "epoch_2.pth").is_file(), done.stderr[-3000:]
    (log,) = work.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("mIoU" in row for row in rows)
    assert torch.load(work / "epoch_2.pth", weights_only=False)["meta"]["iter"] == 4  # 8 images, 2 processes of 2

"""Our schedules in trainings of a few hundred iterations: the average, the warm-up and the rate fit the length."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mm_shapes import shapes_config, write_shapes
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import nn

from timm_mobilevit.mm import MobileViTRunner

ROOT = Path(__file__).parents[2]
SCHEDULES = sorted((ROOT / "mm_configs").glob("*/_base_/schedule_*.py"))
# Iterations: 200 epochs of COCO's 118,287 images, 50 of VOC's, SBD's and COCO's 105,861, each in batches of 128.
PUBLISHED = {"mmdet": 200 * 925, "mmseg": 50 * 828}


def schedule(path):
    return pytest.param(path, id=f"{path.parents[1].name}-{path.stem}")


each_schedule = pytest.mark.parametrize("path", [schedule(path) for path in SCHEDULES])


def averaged(path, model):
    """The average that a schedule's hook makes of a model."""
    hook = dict(Config.fromfile(path).custom_hooks[0])
    options = {key: value for key, value in hook.items() if key not in ("type", "ema_type", "priority")}
    return MODELS.build({"type": hook["ema_type"], **options, "model": model})


@each_schedule
class TestAverage:
    def test_forgets_the_random_start(self, path):
        """After 400 iterations, nothing of the start is left; a constant momentum would keep four fifths."""
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, 1e4)
        ema = averaged(path, model)
        ema.update_parameters(model)
        nn.init.ones_(model.weight)
        for _ in range(399):
            ema.update_parameters(model)
        assert float(ema.module.weight) == pytest.approx(1, abs=1e-3)

    def test_is_of_the_last_tenth(self, path):
        """Of values that rise by one per iteration, it is about a tenth of all iterations behind."""
        model = nn.Linear(1, 1)
        ema = averaged(path, model)
        for value in range(400):
            nn.init.constant_(model.weight, value)
            ema.update_parameters(model)
        assert 400 - float(ema.module.weight) == pytest.approx(40, abs=5)

    def test_has_the_published_momentum_in_the_published_training(self, path):
        model = nn.Linear(1, 1)
        ema = averaged(path, model)
        assert ema.momentum == 5e-4
        for steps in (20_000, 41_000, 184_000):
            ema.steps.fill_(steps)
            nn.init.zeros_(ema.module.weight)
            nn.init.ones_(model.weight)
            ema.update_parameters(model)
            assert float(ema.module.weight) == pytest.approx(5e-4, rel=1e-4)


def warm_up(path, end):
    """The first scheduler of a schedule for a training of so many iterations, and its optimizer; None without one."""
    config = Config.fromfile(path)
    kind = dict(config.param_scheduler[0])
    if kind["by_epoch"]:
        return None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return PARAM_SCHEDULERS.build({**kind, "end": end}, default_args={"optimizer": optimizer}), optimizer


@each_schedule
class TestWarmUp:
    def rates(self, path, end):
        scheduler, optimizer = warm_up(path, end)
        rates = []
        for _ in range(min(end, 600)):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    def full(self, rates):
        """The first iteration at the full rate."""
        return next(i for i, rate in enumerate(rates) if math.isclose(rate, 1.0, rel_tol=1e-6))

    def test_is_as_published_in_the_published_training(self, path):
        published = PUBLISHED[path.parents[1].name]
        if warm_up(path, published) is None:
            assert "ade20k" in path.stem  # trained without
            return
        rates = self.rates(path, published)
        assert rates[0] == pytest.approx(0.1)
        assert rates[250] == pytest.approx(0.1 + 0.9 * 250 / 499, rel=1e-6)
        assert self.full(rates) == 499

    @pytest.mark.parametrize("end", [400, 30, 2])
    def test_takes_a_tenth_of_a_short_training(self, path, end):
        if warm_up(path, end) is None:
            return
        rates = self.rates(path, end)
        assert rates[0] == pytest.approx(0.1)
        assert self.full(rates) == max(end // 10, 2) - 1
        assert rates[-1] == pytest.approx(1.0)


def test_bad_warm_ups():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for options, message in (
        ({"iterations": 5}, "set by_epoch=False"),
        ({"iterations": 0, "by_epoch": False}, "expected iterations from 1"),
        ({"iterations": 5, "share": 1.5, "by_epoch": False}, r"a share in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            PARAM_SCHEDULERS.build({"type": "WarmUpLR", **options}, default_args={"optimizer": optimizer})


class Recorder(Hook):
    """The learning rate of the last iteration of each epoch."""

    def __init__(self, rates):
        self.rates = rates

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == len(runner.train_dataloader) - 1:
            self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, inputs, mode):
        return {"loss": (self.weight * sum(part.sum() for part in inputs)).sum()}


@each_schedule
def test_rate_ends_with_the_training(path, tmp_path):
    """``max_epochs`` is the only length of a schedule: the cosine ends with it."""
    config = Config.fromfile(path)
    config.optim_wrapper.pop("paramwise_cfg", None)
    config.optim_wrapper.pop("accumulative_counts", None)
    rates = []
    runner = MobileViTRunner(
        model=Toy(),
        work_dir=str(tmp_path),
        experiment_name=f"{path.parents[1].name}-{path.stem}",
        train_cfg={**config.train_cfg, "max_epochs": 4},
        optim_wrapper=config.optim_wrapper,
        param_scheduler=config.param_scheduler,
        train_dataloader={
            "dataset": [{"inputs": torch.ones(2)}] * 8,
            "batch_size": 2,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        custom_hooks=[*config.custom_hooks, Recorder(rates)],
        default_hooks={"checkpoint": None},
    )
    runner.train()
    lr = config.optim_wrapper.optimizer.lr
    least = config.param_scheduler[-1].get("eta_min", config.param_scheduler[-1].get("eta_min_ratio", 0) * lr)
    expected = [least + (lr - least) * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates == pytest.approx(expected, rel=1e-3)


@each_schedule
def test_a_small_rate_of_ones_own_never_rises(path):
    """At the end of the training a rate is the same part of any rate that it starts from."""
    kind = {**Config.fromfile(path).param_scheduler[-1], "end": 10}
    parts = []
    for lr in (1e-2, 1e-7):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
        scheduler = PARAM_SCHEDULERS.build(kind, default_args={"optimizer": optimizer})
        for _ in range(10):
            optimizer.step()
            scheduler.step()
        parts.append(optimizer.param_groups[0]["lr"] / lr)
    assert parts[0] == pytest.approx(parts[1])
    assert parts[0] < 0.05


NAMES = {"ssdlite_mobilevitv3-xxs": "coco/bbox_mAP_50", "deeplabv3_mobilevitv3-0.5-d16": "mIoU"}
# A small image has few cells, and a rate for batches of 256 from pretrained weights is low for a start from nothing.
CHANGES = {
    "ssdlite_mobilevitv3-xxs": """
model["backbone"]["output_stride"] = 16
model["bbox_head"]["anchor_generator"]["min_ratio"] = 0.3
optim_wrapper = dict(optimizer=dict(lr=3e-3))
""",
    "deeplabv3_mobilevitv3-0.5-d16": "",
}
EVALUATE = """
import sys
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

config = Config.fromfile(sys.argv[1])
config.work_dir, config.randomness = sys.argv[2], dict(seed=0)
runner = RUNNERS.build(config)
runner.train()
saved = torch.load(f"{sys.argv[2]}/epoch_{runner.max_epochs}.pth", weights_only=False)
weights = {"averaged": saved["state_dict"]}
weights["raw"] = {key[7:]: value for key, value in saved["ema_state_dict"].items() if key.startswith("module.")}
found = {"iterations": runner.iter}
for name, state_dict in weights.items():
    runner.model.load_state_dict(state_dict)
    found[name] = runner.test()[sys.argv[3]]  # whose average starts from what was loaded
print(*(f"{name}={value}" for name, value in found.items()))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.detection if "ssd" in name else []) for name in NAMES]
)
def test_few_images_train_well(name, tmp_path):
    """400 iterations on 48 images, from random weights, with a config that inherits one of ours by its path."""
    root = write_shapes(tmp_path / "shapes", val=64)
    config = tmp_path / "mine.py"
    config.write_text(shapes_config(name, root, epochs=50, batch=6, size=96, extra=CHANGES[name]))
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(config), str(tmp_path / "work"), NAMES[name]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(part.split("=") for part in done.stdout.splitlines()[-1].split())
    scale = 1 if name.startswith("deeplab") else 100
    raw, average = scale * float(found["raw"]), scale * float(found["averaged"])
    assert int(found["iterations"]) == 400
    assert raw > 50
    assert average > raw - 1

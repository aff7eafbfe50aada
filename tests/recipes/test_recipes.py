"""The training recipes say what the papers and configs they name say, in words that timm's train.py understands."""

import argparse
import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import ScheduledBatchSampler, create_transform
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.recipes import find_recipe, list_recipes
from timm_mobilevit.weights.pretrained import WEIGHTS

ROOT = Path(__file__).parents[2]
IMAGENET = 1_281_167  # images to train on
MULTI_SCALE_UPDATES = 927  # per epoch of ImageNet on 8 GPUs; the recipes name it
NAMES = [path.stem for path in list_recipes()]
needs_scripts = pytest.mark.skipif(
    "TIMM_SCRIPTS" not in os.environ,
    reason="timm's wheel is without train.py, and TIMM_SCRIPTS=DIR names no folder that has it",
)


@dataclass(frozen=True)
class Facts:
    """A training as the reference has it, in its own units; ``source`` is where all of it but LR by width is from.

    Channel order, resizing, the choice of RandAugment's operations and the partner in mixup have no option in timm.
    """

    source: str
    epochs: int
    images: int  # per update, at `size`
    optimizer: str
    lr: float
    min_lr: float
    weight_decay: float
    size: int = 256
    shorter_side: int = 288  # of validation images, before the centre crop
    classes: int = 1000
    start: str = ""  # tag of the weights that it starts from
    warmup: tuple[int, float] = (0, 0.0)  # iterations and first learning rate
    decay_all: bool = False  # biases and norms too
    clip: float | None = None
    interpolation: str = "bicubic"
    strong_augmentation: bool = False  # RandAugment(2, 9), erasing 0.25, mixup 0.2 or cutmix 1.0 in half the batches
    multi_scale: bool = False
    dropout: tuple[float, float] = (0.0, 0.0)  # classifier, transformers
    ema: float = 5e-4  # weight of the newest
    channels_last: bool = False


V0_1, V0_2 = "apple/ml-cvnets d38a116 config/classification/", "apple/ml-cvnets 84d992f config/classification/"
MICRON = "micronDLA/MobileViTv3 5e3f490 "
# README-mobilevit-v2.md of CVNets: learning rate, weight decay. The configs have the last row only.
V2_BY_WIDTH = {
    "0_5": (0.0090, 0.004),
    "0_75": (0.0090, 0.008),
    "1_0": (0.0075, 0.013),
    "1_25": (0.0049, 0.020),
    "1_5": (0.0035, 0.029),
    "1_75": (0.0026, 0.039),
    "2_0": (0.0020, 0.050),
}


def facts_of(name: str) -> Facts:
    architecture, tag = name.split(".")
    generation, size = architecture.split("_", 1)
    if "s" in size:
        file = {"v1": f"{V0_1}mobilevit_", "v3": f"{MICRON}MobileViTv3-v1/config/classification/mobilevitv3_"}
        return Facts(
            f"{file[generation[-2:]]}{ {'s': 'small', 'xs': 'x_small', 'xxs': 'xx_small'}[size.split('_')[0]] }",
            epochs=300,
            images=1024,  # of v1: 128 on each of 8 GPUs; the v3 configs do not say on how many
            optimizer="AdamW",
            lr=2e-3,
            min_lr=2e-4,
            warmup=(3000, 2e-4),
            weight_decay=0.01,
            decay_all=True,
            interpolation="bilinear",
            multi_scale=True,
            dropout=(0.1, 0.05 if size.startswith("xxs") else 0.1),
        )
    if tag == "cvnets_in1k_384":
        return Facts(
            f"{V0_2}finetune_higher_res_in1k/mobilevit_v2.yaml",
            epochs=10,
            images=128,
            optimizer="SGD",
            lr=1e-3,
            min_lr=1e-3,
            weight_decay=4e-5,
            size=384,
            shorter_side=384,
            start="cvnets_in1k",
            clip=10,
            ema=5e-5,
            channels_last=True,
        )
    if tag == "cvnets_in22k_ft_in1k":
        return Facts(
            f"{V0_2}finetune_in21k_to_1k/mobilevit_v2.yaml",
            epochs=50,
            images=256,
            optimizer="SGD",
            lr=1e-2,
            min_lr=1e-3,
            weight_decay=4e-5,
            start="cvnets_in22k",
            strong_augmentation=True,
        )
    if tag == "cvnets_in22k":
        return Facts(
            f"{V0_2}imagenet_21k/mobilevit_v2.yaml",
            epochs=80,
            images=4096,
            optimizer="AdamW",
            lr=3e-4,
            min_lr=1e-6,
            weight_decay=V2_BY_WIDTH[size][1],
            classes=10450,
            start="cvnets_in1k",
            clip=10,
            strong_augmentation=True,
            channels_last=True,
        )
    lr, weight_decay = V2_BY_WIDTH[size] if tag == "cvnets_in1k" else (2e-3, 0.05)
    return Facts(
        f"{V0_2}imagenet/mobilevit_v2.yaml"
        if tag == "cvnets_in1k"
        else f"{MICRON}MobileViTv3-v2/config/classification/imagenet/mobilevit_v3_multiserver.py",
        epochs=300,
        images=1024,
        optimizer="AdamW",
        lr=lr,
        min_lr=lr / 10,
        warmup=(20_000, 1e-6),
        weight_decay=weight_decay,
        clip=10,
        strong_augmentation=True,
        channels_last=True,
    )


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recipe(name: str) -> dict:
    return yaml.safe_load(find_recipe(name).read_text())


@pytest.fixture
def facts(name: str) -> Facts:
    return facts_of(name)


def test_all_published_weights_have_a_recipe_but_those_whose_training_is_not_published_or_not_in_timm() -> None:
    published = timm.list_models(module="mobilevit_zoo", include_tags=True, pretrained=True)
    without = {full for full in published if full.endswith(("_rangeaugment_in1k", "_in22k_ft_in1k_384"))}
    pretraining = {full for full in NAMES if full.endswith(".cvnets_in22k")}
    assert set(NAMES) == set(published) - without | pretraining
    assert {full.replace("_ft_in1k", "") for full in published if full.endswith("_in22k_ft_in1k")} == pretraining


def test_header_names_model_source_and_published_accuracy(name: str, facts: Facts) -> None:
    text = find_recipe(name).read_text()
    title, _, rest = text.partition("\n")
    generation, size = name.split(".")[0].removeprefix("mobilevit").split("_", 1)
    assert title.startswith(f"# MobileViT{generation}-{size.upper().replace('_L2', '-L2').replace('_', '.')}: ")
    assert f" {facts.epochs} epochs, {facts.images:,} images per update, " in title
    assert title.endswith(f" {WEIGHTS[name].top1:.2f} %" if name in WEIGHTS else f" {facts.size} px")
    comments = re.sub(r"\n#\s+", " ", rest)
    repository, commit, file = facts.source.split()
    assert re.search(rf"{re.escape(file)}\S* .*{re.escape(repository)}, commit {commit}", comments)


def test_every_launcher_line_has_the_images_per_update_of_the_reference(recipe: dict, name: str, facts: Facts) -> None:
    comments = re.sub(r" \\\n#\s+", " ", find_recipe(name).read_text())
    lines = [line.strip("# ") for line in comments.splitlines() if "timm_mobilevit.run" in line]
    assert len(lines) == 3
    parser = argparse.ArgumentParser()
    for option in ("--nnodes", "--nproc-per-node", "--grad-accum-steps"):
        parser.add_argument(option, type=int, default=1)
    parser.add_argument("-b", type=int, default=recipe["batch_size"])
    for line in lines:
        used, _ = parser.parse_known_args(shlex.split(line))
        assert used.nnodes * used.nproc_per_node * used.grad_accum_steps * used.b == facts.images, line
    gpus = facts.images // recipe["batch_size"]
    assert re.search(rf"^batch_size: \d+  # per GPU, on {gpus}\b", comments, re.MULTILINE)


# What the other tests look at. A recipe sets nothing else: the rest is train.py's defaults.
ELSEWHERE = set(
    shlex.split(
        "model pretrained pretrained_path num_classes epochs batch_size img_size train_img_sizes train_batch_sizes "
        "train_size_schedule variable_batch_loss_scale crop_pct interpolation mean std opt opt_betas momentum "
        "opt_kwargs weight_decay sched lr min_lr warmup_epochs warmup_lr sched_on_updates"
    )
)


def test_augmentation_and_regularisation(recipe: dict, facts: Facts) -> None:
    strong = facts.strong_augmentation
    expected = {
        "scale": [0.08, 1.0],
        "ratio": [3 / 4, pytest.approx(4 / 3)],
        "hflip": 0.5,
        "color_jitter": 0.0,
        "train_interpolation": facts.interpolation,
        "aa": f"rand-m{9 * 10 // 30}-n2-p1-inc1" if strong else None,
        "reprob": 0.25 if strong else None,
        "remode": "const" if strong else None,
        "mixup": 0.2 if strong else None,
        "cutmix": 1.0 if strong else None,
        "mixup_prob": 0.5 if strong else None,
        "mixup_switch_prob": 0.5 if strong else None,
        "smoothing": 0.1,
        "clip_grad": facts.clip,
        "drop": facts.dropout[0] or None,
        "model_kwargs": {"proj_drop_rate": facts.dropout[1]} if facts.dropout[1] else None,
        "model_ema_decay": 1 - facts.ema,
        "channels_last": facts.channels_last or None,
        "amp": True,
        "model_ema": True,
        "dist_bn": "",
    }
    assert {key: recipe.get(key) for key in expected} == expected
    assert recipe.keys() <= expected.keys() | ELSEWHERE


def test_epochs_classes_and_start(recipe: dict, name: str, facts: Facts) -> None:
    architecture = name.split(".")[0]
    assert (recipe["epochs"], recipe["num_classes"]) == (facts.epochs, facts.classes)
    assert recipe.get("pretrained", False) is bool(facts.start)
    if facts.start in ("", "cvnets_in22k"):
        assert recipe["model"] == architecture
    else:
        assert recipe["model"] == f"{architecture}.{facts.start}"
        assert recipe["model"] in WEIGHTS


def test_fine_tuning_without_the_checkpoint_it_needs_stops() -> None:
    for name in NAMES:
        recipe = yaml.safe_load(find_recipe(name).read_text())
        needs_file = facts_of(name).start == "cvnets_in22k"  # nowhere to download
        assert ("pretrained_path" in recipe) is needs_file
        if needs_file:
            overlay = {"file": recipe["pretrained_path"], "num_classes": -1}  # what train.py makes of it
            with pytest.raises(FileNotFoundError, match="CHECKPOINT"):
                timm.create_model(recipe["model"], pretrained=True, pretrained_cfg_overlay=overlay)


def test_sizes_and_batches(recipe: dict, name: str, facts: Facts) -> None:
    assert recipe["img_size"] == facts.size
    if not facts.multi_scale:
        assert "train_img_sizes" not in recipe
        return
    linear = torch.linspace(160, 320, 5).tolist()
    sizes = sorted({round(size / 32) * 32 for size in linear} | {256})
    assert recipe["train_img_sizes"] == sizes == [160, 192, 256, 288, 320]
    # As many pixels in every batch, in images that 8 GPUs can share.
    assert recipe["train_batch_sizes"] == [round(128 * 256**2 / size**2 / 8) * 8 for size in sizes]
    assert recipe["train_size_schedule"] == "constant"
    assert recipe["variable_batch_loss_scale"] == "none"
    assert "train_size_probs" not in recipe
    share = range(math.ceil(IMAGENET / 8))
    assert len(ScheduledBatchSampler(share, recipe["train_batch_sizes"], seed=42)) == MULTI_SCALE_UPDATES
    comments = re.sub(r"\n#\s+", " ", find_recipe(name).read_text())
    assert f"3 are {3 * MULTI_SCALE_UPDATES:,} updates" in comments
    assert (
        f"{MULTI_SCALE_UPDATES} updates on 8 GPUs; without multi-scale batches it has {IMAGENET // 1024:,}" in comments
    )


def test_validation_sees_what_the_weights_are_published_to_see(recipe: dict, name: str, facts: Facts) -> None:
    keys = ("crop_pct", "interpolation", "mean", "std")
    resize, crop, *_ = create_transform(facts.size, **{key: recipe[key] for key in keys}).transforms
    assert (resize.size, crop.size) == (facts.shorter_side, (facts.size, facts.size))
    assert recipe["mean"] == [0, 0, 0]
    assert recipe["std"] == [1, 1, 1]
    if name in WEIGHTS:
        cfg = timm.get_pretrained_cfg(name)
        assert [recipe[key] for key in keys] == [cfg.crop_pct, cfg.interpolation, list(cfg.mean), list(cfg.std)]
        assert cfg.input_size == (3, recipe["img_size"], recipe["img_size"])


def test_optimizer_decays_what_the_reference_decays(recipe: dict, facts: Facts) -> None:
    with torch.device("meta"):
        model = timm.create_model(
            recipe["model"].split(".")[0], drop_rate=recipe.get("drop", 0.0), **recipe.get("model_kwargs", {})
        )
    inside = {module.p for module in model.stages.modules() if isinstance(module, nn.Dropout)}
    assert (model.drop_rate, max(inside)) == facts.dropout

    config = argparse.Namespace(**{"momentum": 0.9, **recipe})
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(config), **recipe.get("opt_kwargs", {}))
    assert type(optimizer).__name__ == facts.optimizer
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for p in model.parameters():
        assert decay[p] == (facts.weight_decay if facts.decay_all or p.ndim > 1 else 0)
    for group in optimizer.param_groups:
        if facts.optimizer == "AdamW":
            assert tuple(group["betas"]) == (0.9, 0.999)
        else:
            assert (group["momentum"], group["nesterov"]) == (0.9, False)


def reference_lr(facts: Facts, epoch: int, iteration: int) -> float:
    """CVNets' learning rate: linear from iteration to iteration in the warm-up, then a cosine from epoch to epoch."""
    iterations, first = facts.warmup
    if iteration < iterations:
        return first + (facts.lr - first) * iteration / iterations
    return facts.min_lr + (facts.lr - facts.min_lr) * (1 + math.cos(math.pi * epoch / facts.epochs)) / 2


def test_learning_rate_follows_the_reference(recipe: dict, facts: Facts) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe["lr"])
    updates = MULTI_SCALE_UPDATES if facts.multi_scale else IMAGENET // facts.images
    scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(argparse.Namespace(**recipe)), updates_per_epoch=updates
    )
    assert epochs == facts.epochs
    assert scheduler is not None  # train.py asks it how often it steps

    iterations, first = facts.warmup
    longer = abs(recipe["warmup_epochs"] * updates - iterations)  # whole epochs are all that timm takes
    assert longer < updates / 2 if iterations else longer == 0
    assert optimizer.param_groups[0]["lr"] == (first if iterations else facts.lr)
    ours, theirs = [], []
    for epoch in range(facts.epochs):
        if recipe.get("sched_on_updates"):
            scheduler.step_update(epoch * updates)
        else:
            scheduler.step(epoch)
        ours.append(optimizer.param_groups[0]["lr"])
        theirs.append(reference_lr(facts, epoch, epoch * updates))
    if not iterations:
        assert ours == pytest.approx(theirs)
        return
    # A warm-up that is up to half an epoch shorter is ahead by that much.
    assert ours == pytest.approx(theirs, abs=facts.lr * longer / iterations + 1e-9)
    after = recipe["warmup_epochs"] + 1
    assert ours[after:] == pytest.approx(theirs[after:])
    assert all(earlier < later for earlier, later in pairwise(ours[: recipe["warmup_epochs"] + 1]))


class TestCommand:
    @staticmethod
    def run(*arguments: str | Path) -> object:
        return CliRunner().invoke(app, ["recipe", *map(str, arguments)])

    def test_list_has_a_line_per_recipe(self) -> None:
        lines = self.run("list").stdout.splitlines()
        assert [line.split()[0] for line in lines] == NAMES
        for line in lines:
            assert f"{facts_of(line.split()[0]).images:,} images per update" in line

    def test_help_has_examples(self) -> None:
        assert self.run("--help").stdout.partition("Examples:")[2].count("timm-mobilevit recipe ") >= 3

    def test_show_prints_the_file(self) -> None:
        for name in NAMES:
            assert self.run("show", name).stdout == find_recipe(name).read_text()

    def test_copy_writes_the_file_and_overwrites_none_unasked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        source = find_recipe("mobilevitv3_s")
        assert self.run("copy", "mobilevitv3_s").exit_code == 0
        assert (tmp_path / source.name).read_text() == source.read_text()

        mine = tmp_path / "new" / "mine.yaml"
        assert self.run("copy", source.stem, "--out", mine).stdout == f"{mine}\n"
        mine.write_text("my own")
        refused = self.run("copy", source.stem, "--out", mine)
        assert refused.exit_code == 1
        assert f"error: {mine} exists; choose another name with --out, or overwrite it with --force" in refused.stderr
        assert mine.read_text() == "my own"
        assert self.run("copy", source.stem, "--out", mine, "--force").exit_code == 0
        assert mine.read_text() == source.read_text()
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.yaml", source.name, "new"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mobilevitv2_1_0", "mobilevitv2_1_0 has several recipes: mobilevitv2_1_0.cvnets_in1k, mobilevitv2_1_0"),
            ("mobilevitv3_s.micron", "did you mean mobilevitv3_s.micron_in1k"),
            ("resnet", "no recipe 'resnet'; `timm-mobilevit recipe list` shows all"),
        ],
    )
    @pytest.mark.parametrize("command", ["show", "copy"])
    def test_unknown_names_are_one_line(
        self, command: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = self.run(command, name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def train_script() -> Path:
    return Path(os.environ["TIMM_SCRIPTS"]).resolve() / "train.py"


@pytest.fixture(scope="module")
def train(train_script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("timm_train", train_script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_scripts
def test_train_py_knows_every_option_and_takes_every_value(
    train: ModuleType, name: str, recipe: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(find_recipe(name)), "--data-dir", "images"])
    args, _ = train._parse_args()
    assert vars(args).items() >= recipe.items()

    options = {action.dest: action for action in train.parser._actions}
    assert recipe.keys() <= options.keys()  # defaults without an option are taken silently
    for key, value in recipe.items():
        option = options[key]
        if option.nargs == 0:
            assert value is True  # a flag
        elif isinstance(value, dict):
            assert isinstance(option.default, dict)
        else:
            for item in value if option.nargs else [value]:
                assert type(item) is option.type  # the parser converts no defaults but texts
                assert option.choices is None or item in option.choices


# One of each kind: from random weights with and without multi-scale batches, and the three that start from weights.
KINDS = {(facts_of(name).multi_scale, facts_of(name).start, facts_of(name).size): name for name in NAMES[::-1]}


@needs_scripts
@pytest.mark.long
@pytest.mark.parametrize("name", KINDS.values())
def test_train_py_trains(train_script: Path, name: str, recipe: dict, tmp_path: Path) -> None:
    for split, count in (("train", 12), ("validation", 4)):
        for label, level in (("dark", 40), ("light", 215)):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (64, 64), (level + index,) * 3).save(tmp_path / split / label / f"{index}.png")
    small = (
        "--data-dir . --num-classes 2 --img-size 64 -b 4 -j 0 --device cpu --amp-dtype bfloat16 --epochs 1 --output ."
    )
    small += " --train-img-sizes 40 64 --train-batch-sizes 8 4" if "train_img_sizes" in recipe else ""
    if recipe.get("pretrained"):
        start = timm.create_model(recipe["model"].split(".")[0])
        torch.save(start.state_dict(), tmp_path / "start.pth")
        small += " --pretrained-path start.pth"
    command = [sys.executable, "-m", "timm_mobilevit.run", train_script, "--config", find_recipe(name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, command), *shlex.split(small), "--experiment", "out"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    values = dict(zip(*(row.split(",") for row in rows), strict=True))
    assert math.isfinite(float(values["train_loss"]))
    assert 0 <= float(values["eval_top1"]) <= 100

"""The main job on real data: trains a model on handwritten digits with timm's own parts, saves it and uses it.

``make demo`` runs it; ``python -m benchmarks.digits --help`` lists the options. It needs the extra ``demo`` and no
network: the scans come with scikit-learn and the model starts from random weights, unless ``--pretrained`` is given.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.data.loader import PrefetchLoader
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter, random_seed

import timm_mobilevit  # noqa: F401  # registers the models
from benchmarks.digits_data import write_digits
from timm_mobilevit._files import filling

CLASSES = [str(digit) for digit in range(10)]
DATA = Path("output/digits")
WEIGHTS_FILE = "model.safetensors"
IMAGES_TO_PREDICT = 5


def make_loaders(data: Path, data_config: dict[str, Any], batch_size: int) -> tuple[PrefetchLoader, PrefetchLoader]:
    """Build the loaders of the training and the validation images below ``data``.

    Args:
        data: Image folder with ``train`` and ``val``.
        data_config: Input size, mean, std and interpolation, as ``timm.data.resolve_data_config`` returns them.
        batch_size: Images per step.

    Returns:
        The training loader (shuffled, augmented, without the last incomplete batch) and the validation loader. Both
        give float images (batch, 3, height, width) and class indices (batch,).
    """
    common = {
        "batch_size": batch_size,
        "input_size": data_config["input_size"],
        "interpolation": data_config["interpolation"],
        "mean": data_config["mean"],
        "std": data_config["std"],
        "device": torch.device("cpu"),
        "num_workers": 0,  # an 8x8 image is read in no time, and one process draws the same crops in every run
    }
    train = create_loader(
        create_dataset("", root=data, split="train"),
        is_training=True,
        # Mirrored digits are other signs, so only small shifts and zooms, and changes of contrast, are left.
        scale=(0.7, 1.0),
        hflip=0.0,
        **common,
    )
    val = create_loader(create_dataset("", root=data, split="val"), crop_pct=data_config["crop_pct"], **common)
    return train, val


@torch.inference_mode()
def evaluate(task: ClassificationTask, loader: PrefetchLoader) -> float:
    """Return the share of the loader's images that the task's model classifies right, in [0, 1]."""
    model = task.get_eval_model().eval()
    evaluator = task.create_evaluator()
    for images, labels in loader:
        evaluator.update(model(images), labels)
    return float(evaluator.compute()["top1"] / 100)


def train(
    task: ClassificationTask,
    loaders: tuple[PrefetchLoader, PrefetchLoader],
    *,
    epochs: int,
    lr: float,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[int, float, float], None] = lambda *_: None,
) -> list[float]:
    """Train the task's model: AdamW, one epoch of linear warm-up, then a cosine down to zero.

    Args:
        task: Model and loss.
        loaders: Training and validation images.
        epochs: Passes over the training images.
        lr: Learning rate at the end of the warm-up.
        on_step: Called after every batch.
        on_epoch: Called after every epoch with its number from 1, its mean loss and its validation accuracy in [0, 1].

    Returns:
        Mean training loss of every epoch.
    """
    batches, val = loaders
    model = task.get_trainable_module().to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    steps = len(batches)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.01)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=steps
    )
    losses = []
    for epoch in range(epochs):
        task.train()
        mean_loss = AverageMeter()
        for step, (images, labels) in enumerate(batches, start=epoch * steps + 1):
            loss = task(images, labels)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step_update(step)
            mean_loss.update(loss.item(), len(images))
            on_step()
        losses.append(mean_loss.avg)
        on_epoch(epoch + 1, mean_loss.avg, evaluate(task, val))
    model.to(memory_format=torch.contiguous_format)
    return losses


def save(model: torch.nn.Module, folder: Path, data_config: dict[str, Any], *, pretrained: bool) -> Path:
    """Write ``model.safetensors`` and ``config.json``, which ``timm.create_model("local-dir:FOLDER")`` takes.

    Returns:
        The file with the weights, for ``timm.create_model(..., checkpoint_path=FILE)``.
    """
    model_config: dict[str, Any] = {"label_names": CLASSES}
    if not pretrained:  # weights trained from scratch owe nothing to the published ones that timm's table describes
        model_config["pretrained_cfg"] = {"tag": "", "license": "apache-2.0", "origin_url": ""}
    with filling(folder) as stage:
        save_for_hf(model, stage, model_config=model_config, data_config=data_config, safe_serialization=True)
    return folder / WEIGHTS_FILE


def predict(folder: Path, images: list[Path]) -> int:
    """Run ``timm-mobilevit predict`` on the saved model in a process of its own, and return the exit code."""
    arguments = ["predict", *map(str, images), "--checkpoint", str(folder), "--topk", "2"]
    print("$ timm-mobilevit", *arguments, flush=True)
    program = "from timm_mobilevit.cli import main; main()"  # the console script, also where it is not installed
    return subprocess.run([sys.executable, "-c", program, *arguments]).returncode


def main(
    model: Annotated[str, typer.Option(help="One of those that `timm-mobilevit list` shows.")] = "mobilevitv3_xxs",
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    img_size: Annotated[int, typer.Option(min=64, help="Side of the square input in pixels.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate at the end of the warm-up.")] = 4e-3,
    batch_size: Annotated[int, typer.Option(min=2, max=1024)] = 64,
    data: Annotated[Path, typer.Option(file_okay=False, help="Image folder, written if missing.")] = DATA,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help=f"Model folder.  [default: {DATA}-MODEL]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the order of the images and their crops.")] = 0,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from ImageNet weights (download).")] = False,
    min_accuracy: Annotated[float, typer.Option(min=0, max=1, help="Exit with 1 below it.")] = 0.98,
) -> None:
    """Train a model on scikit-learn's 1,797 digit scans, evaluate, save, reload and predict."""
    if model not in timm.list_models(module="mobilevit_zoo"):
        raise typer.BadParameter(f"unknown model {model!r}; `timm-mobilevit list` shows all")
    output = output or DATA.with_name(f"{DATA.name}-{model}")
    random_seed(seed)
    try:
        write_digits(data)
        network = timm.create_model(model, num_classes=len(CLASSES), pretrained=pretrained)
    except (OSError, RuntimeError, ValueError) as error:  # another folder's files; weights that cannot be had
        raise typer.BadParameter(str(error)) from error
    data_config = resolve_data_config({"img_size": img_size, "crop_pct": 1.0}, model=network)
    loaders = make_loaders(data, data_config, batch_size)
    task = ClassificationTask(network, criterion_kwargs={"smoothing": 0.1})

    say = partial(Console(highlight=False).print, soft_wrap=True)
    say(f"data:  {data}: {len(loaders[0].dataset):,} scans to train on, {len(loaders[1].dataset)} to validate on")
    say(
        f"model: {model}, {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{'ImageNet weights' if pretrained else 'random weights'}; "
        f"{img_size}×{img_size} pixels, {torch.get_num_threads()} CPU threads"
    )
    start = time.perf_counter()
    _train_with_progress_bar(task, loaders, epochs, lr)
    seconds = time.perf_counter() - start

    accuracy = evaluate(task, loaders[1])
    weights = save(network, output, data_config, pretrained=pretrained)
    reloaded = timm.create_model(model, num_classes=len(CLASSES), checkpoint_path=weights)
    accuracy_reloaded = evaluate(ClassificationTask(reloaded), loaders[1])
    say(f"validation accuracy {accuracy:.2%} after {seconds:.0f} s of training")
    say(f"saved to {weights}, reloaded: validation accuracy {accuracy_reloaded:.2%}")

    scans = sorted(data.glob("val/*/*.png"))
    exit_code = predict(output, scans[:: -(-len(scans) // IMAGES_TO_PREDICT)])
    if accuracy < min_accuracy:
        say(f"failed: expected a validation accuracy of at least {min_accuracy:.2%}")
        exit_code = 1
    if accuracy_reloaded != accuracy:
        say("failed: expected the same accuracy after reloading")
        exit_code = 1
    raise typer.Exit(exit_code)


def _train_with_progress_bar(
    task: ClassificationTask, loaders: tuple[PrefetchLoader, PrefetchLoader], epochs: int, lr: float
) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns) as progress:
        row = progress.add_task("training", total=epochs * len(loaders[0]))
        train(
            task,
            loaders,
            epochs=epochs,
            lr=lr,
            on_step=lambda: progress.advance(row),
            on_epoch=lambda epoch, loss, accuracy: progress.console.print(
                f"epoch {epoch:2}/{epochs}: loss {loss:.3f}, validation accuracy {accuracy:.2%}", highlight=False
            ),
        )


if __name__ == "__main__":
    typer.run(main)

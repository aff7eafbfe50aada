"""Export models, check the files, time and evaluate them in their runtimes: ``python -m benchmarks.exports``.

A row says of a model, a format and a form (``FORMS``): whether the file was written and equals PyTorch, its size, the
milliseconds for one image on one thread and on all, and, for trained models, the accuracy. PyTorch's own forms and
timm's networks are rows too. Each runtime has a process of its own, and the processes take turns.

Results with times are filed under ``latency``, those of ``--rounds 0`` under ``exports``. A row replaces that of the
same model, format and form in the file of the day, so that formats can be measured in environments of their own.
"""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import nn

import timm_mobilevit
from timm_mobilevit.evaluate import evaluate
from timm_mobilevit.export import ExportedModel, export_model
from timm_mobilevit.export.formats import FORMATS, format_of
from timm_mobilevit.export.runtimes import open_file

from . import digits
from ._apart import interleave_apart, processes
from ._device import all_threads, prepare
from ._peers import OURS, TIMM, build_source, build_timm, check_agreement, sources
from ._progress import progress
from ._results import RESULTS, file_name, merge, origin
from ._steps import compile_network, inference
from ._timing import spread

NETWORKS = ("mobilevitv1_s", "mobilevitv2_1_0", "mobilevitv3_1_0")
TRAINED = ("mobilevitv1_xxs", "mobilevitv2_1_0", "mobilevitv3_xxs")  # on digits, one of each generation
SIZE = 256  # side of the images of networks with random weights, in pixels

TORCH = "torch"
TORCH_FORMS = ("plain", "optimized", "optimized, bf16", "compiled")
_STATIC = {"half": False, "dynamic_batch": False, "dynamic_size": False}  # where a format has them
_INT8 = {"calibration": True}  # stands for the folder
# Options of ``export_model``; a format has the forms whose options it takes.
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, any size": {"dynamic_batch": True, "dynamic_size": True},
    "fp32, opset 17": {"opset": 17},
    "fp16": {"half": True},
    "int8": _INT8,
    "int8, weights of 8 bits": _INT8 | {"weight_type": "int8"},
    "int8, unsigned weights": _INT8 | {"weight_type": "uint8"},
}
_TIMM = {(TORCH, "plain"), (TORCH, "compiled"), ("onnx", "fp32")}  # what timm itself offers


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        name: What the rows call it.
        network: Builds it, as ``export_model`` takes it.
        model: Builds it for PyTorch.
        size: Height and width of its images, in pixels.
        images: Folder of images that calibrate eight bits; None for noise, good enough for speed.
        metric: Name of the accuracy, in percent; empty if it is not trained.
        in_torch: Accuracy in PyTorch, by form.
        of_file: Accuracy of a file.
        variant: The architecture, one of our models; empty for a detector or segmentor.
    """

    name: str
    network: Callable[[], nn.Module]
    model: Callable[[], nn.Module]
    size: tuple[int, int]
    images: Path | None = None
    metric: str = ""
    in_torch: Callable[[nn.Module], float] | None = None
    of_file: Callable[[ExportedModel], float] | None = None
    variant: str = ""


def untrained(name: str) -> Subject:
    """Return one of our models with random weights."""
    network = partial(build_source, name, OURS)
    return Subject(name, network, network, (SIZE, SIZE), variant=name)


def trained(name: str, folder: Path, data: Path) -> Subject:
    """Return a network that ``benchmarks.digits`` trained, in ``folder``; data has ``train`` and ``val``."""

    def network() -> nn.Module:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def accuracy(model: nn.Module) -> float:
        return evaluate(model, data, workers=0)[0].top1

    size = network().pretrained_cfg["input_size"][1:]
    return Subject(f"{name}, digits", network, network, size, data / "train", "top-1", accuracy, accuracy)


def dense(config: Path, checkpoint: Path) -> Subject:
    """Return a detector or segmentor, judged by the evaluator of its config on the images that this tests on."""
    from mmengine.evaluator import Evaluator
    from mmengine.runner import Runner
    from mmengine.structures import InstanceData, PixelData

    from timm_mobilevit.export.mm import load_exportable
    from timm_mobilevit.export.tails import Suppression
    from timm_mobilevit.mm.loading import load_model

    model, cfg = load_model(str(config), str(checkpoint))
    metric = {"mmdet": "coco/bbox_mAP_50", "mmseg": "mIoU"}[cfg.default_scope]
    loader = Runner.build_dataloader(cfg.test_dataloader)

    def judge(predict: Callable[[dict[str, Any]], Any]) -> float:
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        with torch.inference_mode():
            for batch in loader:
                evaluator.process(predict(batch), batch)
        value = float(evaluator.evaluate(len(loader.dataset))[metric])
        return value if cfg.default_scope == "mmseg" else 100 * value  # mmseg gives percent

    def of_file(exported: ExportedModel) -> float:
        suppress = Suppression(exported.pretrained_cfg) if cfg.default_scope == "mmdet" else None

        def predict(batch: dict[str, Any]) -> Any:
            for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
                pixels = (image[[2, 1, 0]] / 255)[None]  # from uint8 BGR [3, H, W]
                outputs = [torch.from_numpy(output) for output in exported.run(pixels.numpy())]
                if suppress is not None:
                    boxes, scores, labels = suppress(*outputs, pixels)
                    across, down = sample.scale_factor  # of the image over the original
                    boxes = boxes / boxes.new_tensor([across, down, across, down])
                    sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
                else:
                    logits = F.interpolate(outputs[0], size=sample.ori_shape[:2], mode="bilinear", align_corners=False)
                    sample.pred_sem_seg = PixelData(data=logits.argmax(1))
            return batch["data_samples"]

        return judge(predict)

    data = cfg.train_dataloader.dataset
    images = Path(data.data_root, next(prefix for key, prefix in data.data_prefix.items() if key.startswith("img")))
    return Subject(
        config.stem,
        lambda: load_exportable(str(config), str(checkpoint)),
        model.eval,
        load_exportable(str(config), str(checkpoint)).input_size[1:],
        images,
        metric.removeprefix("coco/"),
        lambda network: judge(network.test_step),
        of_file,
    )


def write_file(subject: Subject, source: str, to: str, form: str, path: Path) -> None:
    """Write the file of a model; ours by this package, which compares it with PyTorch, timm's by timm's own function.

    Raises:
        Exception: What the export raises.
    """
    network = subject.network()
    if source == TIMM:
        export_timm(build_timm(network, subject.variant, exportable=True), path)
        return
    options = {key: value for key, value in _STATIC.items() if key in FORMATS[to].takes} | FORMS[form]
    if "calibration" in options:
        options["calibration"] = subject.images or _noise(path.parent)
    export_model(network, path, to, input_size=(3, *subject.size), **options)


def export_timm(network: nn.Module | None, path: Path) -> None:
    """Write a network of timm, built with ``exportable=True``, as its onnx_export.py does by default."""
    from timm.utils.onnx import onnx_export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing and deprecation in timm's exporter
        onnx_export(network, str(path), input_size=(3, SIZE, SIZE), batch_size=1, opset=18, verbose=False)


def _noise(folder: Path) -> Path:
    images = folder / "noise"
    images.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(images / f"{index}.png")
    return images


def open_call(variant: str, source: str, form: str, file: Path | None, size: tuple[int, int], threads: int) -> Any:
    """Make the call that is timed, one image, on a number of threads; in a process of its own."""
    prepare("cpu", threads)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    if file is not None:
        return partial(_first, open_file(file, threads=threads), images.numpy())
    network = build_source(variant, source)
    if source == OURS and form != "plain":
        network = _in_form(network, form)
        images = images.contiguous(memory_format=torch.channels_last)
    return inference(compile_network(network) if form == "compiled" else network, images)


def _in_form(network: nn.Module, form: str) -> nn.Module:
    """Return one of our networks in a form of PyTorch, not compiled yet."""
    if form == "plain":
        return network
    return timm_mobilevit.optimize_for_inference(network, dtype=torch.bfloat16 if form.endswith("bf16") else None)


def _first(run: Callable[[Any], list[Any]], image: Any) -> Any:
    return run(image)[0]


Key = tuple[str, str, str]  # source, format, form


def wanted(subject: Subject, formats: Sequence[str], forms: Sequence[str]) -> Iterator[Key]:
    """Give what exists of the wanted formats and forms for a model."""
    for source in sources(subject.variant) if subject.variant else [OURS]:
        for to in formats:
            for form in forms:
                if to == TORCH:
                    # Compiled networks are timed only, and trained ones are not.
                    there = form in TORCH_FORMS and (form != "compiled" or bool(subject.variant))
                else:
                    there = form in FORMS and FORMS[form].keys() <= FORMATS[to].takes.keys()
                if there and (source == OURS or (source == TIMM and (to, form) in _TIMM)):
                    yield source, to, form


def measure(
    subject: Subject, keys: Sequence[Key], folder: Path, *, rounds: int, seconds: float
) -> list[dict[str, object]]:
    """Export, check, evaluate and time one model.

    Args:
        subject: The model.
        keys: What ``wanted`` gives.
        folder: An empty folder to write to.
        rounds: Samples of each time; 0 for none.
        seconds: Length of a sample.

    Returns:
        A row for each key, but for formats whose packages are missing.
    """
    files: dict[Key, Path] = {}
    results: dict[Key, str] = {}
    found: dict[Key, str] = {}
    for key in keys:
        source, to, form = key
        try:
            if to == TORCH:
                if subject.in_torch is not None:
                    found[key] = f"{subject.in_torch(_in_form(subject.model(), form)):.2f}"
                results[key] = "yes"
                continue
            path = folder / source / form / f"model{FORMATS[to].ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(subject, source, to, form, path)
            files[key] = path
            results[key] = "not verified" if FORMATS[to].open is None else "yes"
            if subject.of_file is not None and FORMATS[to].open is not None:
                found[key] = f"{subject.of_file(ExportedModel(path)):.2f}"
        except ImportError as error:
            typer.echo(f"{subject.name} {to}: not tried: {error}", err=True)
        except Exception as error:  # of a converter or a runtime: it is the result
            results[key] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    milliseconds = _time(subject, results, files, rounds, seconds) if rounds and subject.variant else {}
    return [
        {
            "model": subject.name,
            **dict(zip(("source", "format", "form"), key, strict=True)),
            "size": "x".join(map(str, subject.size)),
            "result": result,
            "mib": f"{mebibytes(files[key]):.2f}" if key in files else "",
            "metric": subject.metric,
            "accuracy": found.get(key, ""),
            "rounds": rounds or "",
            **{name: milliseconds.get((key, name), "") for name in ("ms", "ms_q1", "ms_q3", "ms_all_threads")},
            "all_threads": all_threads() if rounds else "",
            "packages": _versions(key[1]),
            **origin("cpu"),
        }
        for key, result in results.items()
    ]


def _time(
    subject: Subject, results: dict[Key, str], files: dict[Key, Path], rounds: int, seconds: float
) -> dict[tuple[Key, str], str]:
    """Time one image on one thread, and on all."""
    keys = [key for key, result in results.items() if result == "yes"]
    texts = {}
    with processes(keys) as executors:
        for threads in (1, all_threads()):
            makers = {
                key: partial(open_call, subject.variant, key[0], key[2], files.get(key), subject.size, threads)
                for key in keys
            }
            times = interleave_apart(executors, makers, rounds=rounds, seconds=seconds)
            exact = {"/".join(key): output for key, output in times.outputs.items() if key[2] in ("plain", "fp32")}
            check_agreement(exact, 1e-3)
            for key, samples in times.samples.items():
                found = spread([1e3 * sample for sample in samples])
                if threads == 1:
                    texts |= {(key, "ms"): f"{found.median:.2f}"}
                    texts |= {(key, "ms_q1"): f"{found.q1:.2f}", (key, "ms_q3"): f"{found.q3:.2f}"}
                texts[key, "ms_all_threads"] = f"{found.median:.2f}"
    return texts


def mebibytes(path: Path) -> float:
    """Return the size of a file and of those that belong to it.

    Example:
        >>> file = Path(tempfile.mkdtemp(), "model.tflite")
        >>> file.write_bytes(bytes(2**20)), mebibytes(file)
        (1048576, 1.0)
    """
    siblings = FORMATS[format_of(path)].siblings
    parts = [path, *(path.with_suffix(ending) for ending in siblings), *path.rglob("*")]
    return sum(part.stat().st_size for part in parts if part.is_file()) / 2**20


def _versions(to: str) -> str:
    packages = (TORCH,) if to == TORCH else (*FORMATS[to].packages, FORMATS[to].runtime)
    names = {name: packages_distributions().get(name, [name])[0] for name in packages if name}
    return ", ".join(f"{name} {version(name)}" for name in dict.fromkeys(names.values()))


def train_missing(data: Path) -> dict[str, Path]:
    """Return the folders of ``TRAINED`` beside the scans; ``benchmarks.digits`` trains what is missing."""
    folders = {name: data.with_name(f"{data.name}-{name}") for name in TRAINED}
    for name, folder in folders.items():
        if not folder.exists():
            command = ["-m", "benchmarks.digits", "--model", name, "--data", str(data), "--output", str(folder)]
            command += ["--min-accuracy", "0.9"]  # the demo asks for more than a comparison needs
            subprocess.run([sys.executable, *command], check=True)
    return folders


def main(
    network: Annotated[
        list[str] | None, typer.Option(help=f"Wildcards of our models; repeatable.  [default: {', '.join(NETWORKS)}]")
    ] = None,
    trained_on_digits: Annotated[bool, typer.Option("--trained", help="Networks trained on digits instead.")] = False,
    config: Annotated[Path | None, typer.Option(dir_okay=False, help="A detector or segmentor instead.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Its weights.")] = None,
    data: Annotated[Path, typer.Option(file_okay=False, help="Digit scans, written if missing.")] = digits.DATA,
    formats: Annotated[list[str] | None, typer.Option("--format", help=f"{TORCH}, {', '.join(FORMATS)}.")] = None,
    forms: Annotated[list[str] | None, typer.Option("--form", help=f"{'; '.join((*TORCH_FORMS, *FORMS))}.")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Samples of each time; 0 for none.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Length of a sample.")] = 0.3,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Export, check, time and evaluate."""
    prepare("cpu", 1)
    known = {"--format": (TORCH, *FORMATS), "--form": (*TORCH_FORMS, *FORMS)}
    for option, given in (("--format", formats), ("--form", forms)):
        if unknown := sorted(set(given or ()) - set(known[option])):
            raise typer.BadParameter(
                f"expected {'; '.join(known[option])}; got {', '.join(unknown)}", param_hint=option
            )
    subjects = _subjects(network or NETWORKS, trained_on_digits, config, checkpoint, data)
    keys_of = {s.name: list(wanted(s, formats or known["--format"], forms or known["--form"])) for s in subjects}
    if none := [name for name, keys in keys_of.items() if not keys]:
        raise typer.BadParameter(f"of {', '.join(none)} there is no such --form in such a --format")
    path = out / file_name("latency" if rounds else "exports", "cpu")
    columns = ("model", "source", "format", "form")
    count = 0
    with progress(len(subjects)) as begin:
        for subject in subjects:
            begin(subject.name)
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(subject, keys_of[subject.name], Path(folder), rounds=rounds, seconds=seconds)
            count = merge(rows, path, columns)
            for row in rows:
                typer.echo(" ".join(str(row[key]) for key in (*columns, "result", "accuracy", "ms")))
    typer.echo(f"{path}: {count} rows")


def _subjects(
    patterns: Sequence[str], on_digits: bool, config: Path | None, checkpoint: Path | None, data: Path
) -> list[Subject]:
    if (config is None) != (checkpoint is None):
        raise typer.BadParameter("expected both --config and --checkpoint, or neither")
    if config is not None and checkpoint is not None:
        return [dense(config, checkpoint)]
    if on_digits:
        return [trained(name, folder, data) for name, folder in train_missing(data).items()]
    names = timm.list_models(list(patterns), module="mobilevit_zoo")
    if not names:
        raise typer.BadParameter(f"expected models that `timm-mobilevit list` shows, got {', '.join(patterns)}")
    return [untrained(name) for name in names]


if __name__ == "__main__":
    typer.run(main)

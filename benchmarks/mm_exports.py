"""Accuracy of a detector or segmentor in PyTorch and of its exported files: ``python -m benchmarks.mm_exports``.

``python -m benchmarks.mm_exports CONFIG CHECKPOINT`` takes a config of ``benchmarks/mm_digits`` and what was trained
with it. The model, and its files in each runtime and precision, see the images that the config tests on; the config's
own evaluator judges them. Eight bits are calibrated on the images that the config trains on. OpenVINO runs the ONNX
files. A row replaces one of the same config, runtime and precision in the file of the day.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from numpy.typing import NDArray
from torch import Tensor

from timm_mobilevit.export import export_model
from timm_mobilevit.export._facts import read_facts
from timm_mobilevit.export.mm import ExportableDetector, load_exportable
from timm_mobilevit.export.openvino import open_openvino
from timm_mobilevit.export.runtimes import open_file
from timm_mobilevit.export.tails import Suppression
from timm_mobilevit.mm.loading import load_model

from ._device import prepare
from ._results import RESULTS, file_name, origin, read, write

PRECISIONS = ("fp32", "fp16", "int8")
RUNTIMES = {"onnxruntime": PRECISIONS, "openvino": PRECISIONS, "executorch": ("fp32", "int8")}
METRICS = {"mmdet": "coco/bbox_mAP_50", "mmseg": "mIoU"}  # by default_scope


def write_file(network: Any, runtime: str, precision: str, images: Path, folder: Path) -> Path:
    """Write the file of a detector or segmentor; an ONNX file of a detector has its suppression.

    Args:
        network: What ``load_exportable`` gives.
        runtime: A key of ``RUNTIMES``.
        precision: One that the runtime has.
        images: Folder of images to calibrate eight bits on.
        folder: Where to write.
    """
    executorch = runtime == "executorch"
    file = folder / ("model.pte" if executorch else "model.onnx")
    options: dict[str, Any] = {"calibration": images if precision == "int8" else None}
    if not executorch:
        options |= {"dynamic_batch": False, "dynamic_size": False, "half": precision == "fp16"}
        options["suppress"] = isinstance(network, ExportableDetector)
    export_model(network, file, input_size=network.input_size, **options)
    return file


def open_in(runtime: str, file: Path) -> Callable[[NDArray[np.float32]], list[Tensor]]:
    """Return a function from an image [1, 3, H, W] to detections (boxes, scores, labels) or logits, in a runtime."""
    opened = open_openvino(file, torch.get_num_threads()) if runtime == "openvino" else open_file(file)
    facts = read_facts(file)

    def run(image: NDArray[np.float32]) -> list[Tensor]:
        outputs = [torch.from_numpy(output) for output in opened(image)]
        if len(outputs) == 2:  # of all anchors
            return list(Suppression(facts)(*outputs, torch.from_numpy(image)))
        return outputs

    return run


def predictor(run: Callable[[NDArray[np.float32]], list[Tensor]]) -> Callable[[dict[str, Any]], list[Any]]:
    """Return a function from a batch, whose images are uint8 BGR [3, H, W], to its samples with predictions."""

    def predict(batch: dict[str, Any]) -> list[Any]:
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            found = run((image[[2, 1, 0]] / 255)[None].numpy())
            if len(found) == 3:
                boxes, scores, labels = found
                across, down = sample.scale_factor  # of the image over the original
                boxes = boxes / boxes.new_tensor([across, down, across, down])
                sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            else:
                logits = F.interpolate(found[0], size=sample.ori_shape[:2], mode="bilinear", align_corners=False)
                sample.pred_sem_seg = PixelData(data=logits.argmax(1))
        return batch["data_samples"]  # type: ignore[no-any-return]

    return predict


def evaluate(cfg: Config, loader: Any, predict: Callable[[dict[str, Any]], list[Any]]) -> float:
    """Return what the config's evaluator says of the predictions for all images of a loader, in percent."""
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        evaluator.process(predict(batch), batch)
    value = float(evaluator.evaluate(len(loader.dataset))[METRICS[cfg.default_scope]])
    return value if cfg.default_scope == "mmseg" else 100 * value


def measure(
    config: Path, checkpoint: Path, runtimes: Sequence[str] = tuple(RUNTIMES), precisions: Sequence[str] = PRECISIONS
) -> Iterator[dict[str, object]]:
    """Rows, one for each runtime and precision: the metric of the model in PyTorch and of its file."""
    model, cfg = load_model(str(config), str(checkpoint))
    loader = Runner.build_dataloader(cfg.test_dataloader)
    with torch.inference_mode():
        expected = evaluate(cfg, loader, model.eval().test_step)
    network = load_exportable(str(config), str(checkpoint))
    data = cfg.train_dataloader.dataset
    images = Path(data.data_root, next(prefix for key, prefix in data.data_prefix.items() if key.startswith("img")))
    for runtime in runtimes:
        for precision in (offered for offered in RUNTIMES[runtime] if offered in precisions):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    run = open_in(runtime, write_file(network, runtime, precision, images, Path(folder)))
                except ImportError as error:  # ExecuTorch has no release for every torch
                    typer.echo(f"{runtime} not tried: {error}", err=True)
                    break
                found = evaluate(cfg, loader, predictor(run))
            yield {
                "config": config.stem,
                "runtime": runtime,
                "precision": precision,
                "metric": METRICS[cfg.default_scope].removeprefix("coco/"),
                "images": len(loader.dataset),
                "in_torch": f"{expected:.2f}",
                "in_runtime": f"{found:.2f}",
                **origin("cpu"),
            }


def main(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    runtimes: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = ",".join(RUNTIMES),
    precisions: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = ",".join(PRECISIONS),
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Evaluate a detector or segmentor, and its exported files."""
    wanted = {"runtimes": runtimes.split(","), "precisions": precisions.split(",")}
    for what, known in (("runtimes", RUNTIMES), ("precisions", PRECISIONS)):
        if unknown := sorted(set(wanted[what]) - set(known)):
            raise typer.BadParameter(f"expected {what} of {', '.join(known)}, got {', '.join(unknown)}")
    prepare("cpu", 1)
    path = out / file_name("mm-exports", "cpu", PRECISIONS)
    keys = ("config", "runtime", "precision")
    rows: dict[Any, Any] = {tuple(row[key] for key in keys): row for row in (read(path) if path.exists() else [])}
    for row in measure(config, checkpoint, **wanted):
        rows[tuple(row[key] for key in keys)] = row
        write(list(rows.values()), path)
        typer.echo(" ".join(str(row[key]) for key in (*keys, "metric", "in_torch", "in_runtime")))
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

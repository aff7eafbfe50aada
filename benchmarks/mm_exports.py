"""Accuracy of a detector or segmentor in PyTorch and in its ONNX files: ``python -m benchmarks.mm_exports``.

``python -m benchmarks.mm_exports CONFIG CHECKPOINT`` takes a config of ``benchmarks/mm_digits`` and what was trained
with it. The model, and its files in each precision, see the images that the config tests on; the config's own evaluator
judges them. Eight bits are calibrated on the images that the config trains on. A row replaces one of the same config
and precision in the file of the day.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import torch
import torch.nn.functional as F
import typer
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from timm_mobilevit.export.final_outputs import add_suppression
from timm_mobilevit.export.mm import ExportableDetector, load_exportable
from timm_mobilevit.export.onnx import export_onnx
from timm_mobilevit.export.quantize import quantize_onnx
from timm_mobilevit.mm.loading import load_model

from ._device import prepare
from ._progress import progress
from ._results import RESULTS, file_name, origin, read, write

PRECISIONS = ("fp32", "fp16", "int8")
METRICS = {"mmdet": "coco/bbox_mAP_50", "mmseg": "mIoU"}  # by default_scope


def write_file(config: Path, checkpoint: Path, precision: str, images: Path, folder: Path) -> Path:
    """Write the ONNX file of a detector, with its suppression, or of a segmentor.

    Args:
        config: Config of the model.
        checkpoint: Its weights.
        precision: One of ``PRECISIONS``.
        images: Folder of images to calibrate eight bits on.
        folder: Where to write.
    """
    network = load_exportable(str(config), str(checkpoint))
    file = folder / "model.onnx"
    options = {"dynamic_batch": False, "dynamic_size": False, "half": precision == "fp16"}
    export_onnx(network, file, input_size=network.input_size, **options)
    if precision == "int8":
        quantize_onnx(file, file, images)
    if isinstance(network, ExportableDetector):
        add_suppression(file, file)
    return file


def predictor(file: Path) -> Callable[[Tensor, Any], Any]:
    """A function from an image of the data set, uint8 BGR [3, H, W], and its sample to the sample with predictions."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def predict(image: Tensor, sample: Any) -> Any:
        outputs = session.run(None, {"images": (image[[2, 1, 0]] / 255)[None].numpy()})
        found = [torch.from_numpy(output) for output in outputs]
        if len(found) == 3:
            boxes, scores, labels = found
            across, down = sample.scale_factor  # of the image over the original
            boxes = boxes / boxes.new_tensor([across, down, across, down])
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        else:
            logits = F.interpolate(found[0], size=sample.ori_shape[:2], mode="bilinear", align_corners=False)
            sample.pred_sem_seg = PixelData(data=logits.argmax(1))
        return sample

    return predict


def evaluate(cfg: Config, predict: Callable[[dict[str, Any]], list[Any]]) -> float:
    """What the config's evaluator says of the predictions for all its test images, in percent."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        evaluator.process(predict(batch), batch)
    value = float(evaluator.evaluate(len(loader.dataset))[METRICS[cfg.default_scope]])
    return value if cfg.default_scope == "mmseg" else 100 * value


def measure(config: Path, checkpoint: Path, precision: str) -> dict[str, object]:
    """A row: the metric of the model in PyTorch and of its file."""
    model, cfg = load_model(str(config), str(checkpoint))
    with torch.inference_mode():
        expected = evaluate(cfg, model.eval().test_step)
    data = cfg.train_dataloader.dataset
    images = Path(data.data_root, next(prefix for key, prefix in data.data_prefix.items() if key.startswith("img")))
    with tempfile.TemporaryDirectory() as folder:
        predict = predictor(write_file(config, checkpoint, precision, images, Path(folder)))
        found = evaluate(cfg, lambda batch: list(map(predict, batch["inputs"], batch["data_samples"])))
    return {
        "config": config.stem,
        "precision": precision,
        "metric": METRICS[cfg.default_scope].removeprefix("coco/"),
        "images": len(Runner.build_dataloader(cfg.test_dataloader).dataset),
        "in_torch": f"{expected:.2f}",
        "in_onnxruntime": f"{found:.2f}",
        **origin("cpu"),
    }


def main(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    precisions: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = ",".join(PRECISIONS),
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the CSV file.")] = RESULTS,
) -> None:
    """Evaluate a detector or segmentor, and its ONNX files."""
    wanted = precisions.split(",")
    if unknown := sorted(set(wanted) - set(PRECISIONS)):
        raise typer.BadParameter(f"expected precisions of {', '.join(PRECISIONS)}, got {', '.join(unknown)}")
    prepare("cpu", 1)
    path = out / file_name("mm-exports", "cpu", PRECISIONS)
    rows: list[Any] = read(path) if path.exists() else []
    with progress(len(wanted)) as begin:
        for precision in wanted:
            begin(precision)
            row = measure(config, checkpoint, precision)
            rows = [old for old in rows if (old["config"], old["precision"]) != (row["config"], precision)] + [row]
            write(rows, path)
            typer.echo(f"{config.stem} {precision}: {row['metric']} {row['in_torch']} -> {row['in_onnxruntime']} %")
    typer.echo(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    typer.run(main)

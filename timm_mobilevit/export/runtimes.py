"""Exported files in their runtimes, on the CPU of this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ._calibration import as_input
from ._metadata import read_metadata
from .formats import FORMATS, format_of

Run = Callable[[NDArray[Any]], list[NDArray[Any]]]  # from one image, as the file takes it, to all outputs


class ExportedModel(nn.Module):
    """A file of any format that runs here, as a model that can be evaluated and timed.

    Its configuration is read from the metadata of an ONNX file, or from the JSON file beside the others. The runtime
    computes in float32 where it lets one choose, and gets one image at a time.

    Args:
        path: File that ``timm-mobilevit export`` wrote, or the directory of a format that has several.
        threads: How many threads the runtime uses; None for as many as PyTorch.

    Attributes:
        pretrained_cfg: The metadata of the file, in the names of timm.
        num_classes: Size of the last axis of its first output.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the extra of the format is not installed.
        ValueError: If the format is unknown or does not run here.

    Shape:
        Input [B, channels, height, width] of the size that the file takes. Outputs as the model's: a tensor, or a list
        of several.

    Example:
        >>> import tempfile, timm
        >>> from timm_mobilevit.export import export_onnx
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10).eval()
        >>> images = torch.rand(2, 3, 64, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = {"input_size": (3, 64, 64), "dynamic_batch": False, "dynamic_size": False}
        ...     _ = export_onnx(model, f"{folder}/model.onnx", **size)
        ...     exported = ExportedModel(f"{folder}/model.onnx")
        ...     exported.num_classes, torch.allclose(exported(images), model(images), atol=1e-4)
        (10, True)
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        super().__init__()
        path = Path(path)
        open_in_runtime = find_runtime(path)
        metadata = read_metadata(path)
        self.run = open_in_runtime(path, threads or torch.get_num_threads())
        size = tuple(metadata["input_size"])
        self.pretrained_cfg = metadata | {"input_size": size, "label_names": metadata.get("labels")}
        outputs = self.forward(torch.zeros(1, *size))
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        self.num_classes = self.pretrained_cfg["num_classes"] = int(first.shape[-1])

    def forward(self, x: Tensor) -> Any:
        """Run the file on each image of a batch."""
        pictures = bool(self.pretrained_cfg.get("image_input"))
        runs = [self.run(as_input(image[None].cpu().float(), pictures=pictures).numpy()) for image in x]
        outputs = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*runs, strict=True)]
        if self.pretrained_cfg.get("outputs") == ["probabilities"]:  # of which these are logits
            outputs = [outputs[0].clamp(min=torch.finfo(outputs[0].dtype).tiny).log()]
        return outputs[0] if len(outputs) == 1 else outputs


def open_file(path: Path, *, threads: int | None = None) -> Run:
    """Load a file into its runtime, as a function from one image, as the file takes it, to the outputs.

    Arguments and errors are those of :class:`ExportedModel`.
    """
    return find_runtime(path)(path, threads or torch.get_num_threads())


def find_runtime(path: Path) -> Callable[[Path, int], Run]:
    """Return the function that loads a file of its format, with so many threads; the file is not read yet.

    Errors are those of :class:`ExportedModel`.
    """
    form = FORMATS[format_of(path)]
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if form.open is None:
        raise ValueError(f"{path} cannot be run here: {form.unverified}")
    form.require(to_write=False)
    return form.open

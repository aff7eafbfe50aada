"""Core ML: an ML program for iOS 15, macOS 12 and newer, which takes pictures as the camera gives them."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._labels import known_class_names
from ._program import trace
from .onnx import output_names


def export_coreml(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    half_precision: bool = True,
) -> None:
    """Write a model as a Core ML package, on macOS or Linux.

    The model is optimised first (batch norms folded into convolutions) and is itself left as it is. The package has the
    input ``image``, a picture of ``input_size``: Vision, Apple's framework, scales and crops to it. The rest of the
    preprocessing is in the package: division by 255, and mean and standard deviation of the model's configuration.

    A classifier whose class names are known becomes a Core ML classifier, which Vision and Xcode's preview understand:
    its outputs are ``classLabel``, and ``classLabel_probs`` by class name. All other models have their raw outputs:
    ``logits``, ``features``, ``feature_0``, … as in ONNX files.

    Core ML itself exists on Apple's systems only: elsewhere the package is written, but cannot be run.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: Package to write, a directory that ends in ``.mlpackage``; an existing one is replaced.
        input_size: Channels (3 for RGB, 1 for grey), height and width of the image.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        half_precision: Whether to compute in float16, which Apple's neural engine needs; otherwise in float32.

    Raises:
        ImportError: If the extra ``coreml`` is not installed.
        ValueError: If ``path`` has another ending or is a file, the number of labels is not that of the classes, or the
            size is none that the model and Core ML take.
    """
    try:
        import coremltools as ct
    except ImportError as error:
        raise ImportError(
            f'Core ML export needs coremltools ({error}); install with: pip install "timm-mobilevit[coreml]"'
        ) from error

    path = Path(path)
    if path.suffix != ".mlpackage" or path.is_file():
        raise ValueError(f"expected a directory to write that ends in .mlpackage, got {path}")
    colours = {1: ct.colorlayout.GRAYSCALE, 3: ct.colorlayout.RGB}
    if input_size[0] not in colours:
        raise ValueError(f"Core ML takes images of one channel or three, got input_size={input_size!r}")
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or getattr(model, "export_metadata", {})
    names = known_class_names(model, labels)

    program = trace(_WithPreprocessing(model, cfg, probabilities=names is not None), input_size)
    outputs = output_names(model, len(program.graph_signature.user_outputs))
    package = ct.convert(
        program,
        convert_to="mlprogram",
        inputs=[ct.ImageType("image", shape=(1, *input_size), scale=1 / 255, color_layout=colours[input_size[0]])],
        outputs=None if names else [ct.TensorType(name) for name in outputs],
        classifier_config=ct.ClassifierConfig(names) if names else None,
        compute_precision=ct.precision.FLOAT16 if half_precision else ct.precision.FLOAT32,
        skip_model_load=True,
    )
    package.short_description = ".".join(str(cfg[key]) for key in ("architecture", "tag") if cfg.get(key))
    package.license = cfg.get("license", "")

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as scratch:
        new = Path(scratch, path.name)
        package.save(str(new))
        if path.exists():
            os.replace(path, Path(scratch, "old.mlpackage"))  # a directory that is not empty cannot be replaced
        os.replace(new, path)


class _WithPreprocessing(nn.Module):
    """A model for pixels in [0, 1], which gives probabilities if it is to be a Core ML classifier."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, cfg: dict[str, Any], *, probabilities: bool) -> None:
        super().__init__()
        self.model = model
        mean, std = cfg.get("mean") or 0.0, cfg.get("std") or 1.0
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.normalize = bool((self.mean != 0).any() or (self.std != 1).any())
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Any:
        x = self.model((x - self.mean) / self.std if self.normalize else x)
        return x.softmax(-1) if self.probabilities else x

"""Files of every format, by one function."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ._calibration import QuantizationLoss


def export_model(
    model: "nn.Module",
    path: str | os.PathLike[str],
    to: str = "",
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    **options: Any,
) -> "float | QuantizationLoss | None":
    """Write a model for another runtime: ONNX, OpenVINO, LiteRT, ncnn, ExecuTorch or Core ML.

    The model is optimised first (batch norms folded into convolutions) and is itself left as it is. The file is run in
    its runtime and compared with PyTorch before it is put in place, except where the runtime does not exist on this
    machine. ONNX files and Core ML packages say themselves what they were made from; elsewhere a JSON file beside it
    holds architecture, preprocessing, size of the images and class names: ``digits.tflite.json`` for ``digits.tflite``.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: What to write, with the ending of the format; an existing file is replaced. OpenVINO writes a ``.bin``
            beside its ``.xml``; ncnn and Core ML write a directory.
        to: The format, a key of ``timm_mobilevit.export.formats.FORMATS``; by default that of the ending.
        input_size: Channels, height and width of the image. Only ONNX files take more than one image, or other sizes.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        options: Those that the format takes (``FORMATS[to].takes`` has their defaults), with the meaning that
            ``export_onnx`` gives them. ``half``: weights in float16, in Core ML arithmetic too. ``softmax``:
            probabilities instead of logits. ``image_input``: pictures as they are decoded, uint8 [1, height, width,
            channels]. ``calibration``: folder of images, for eight bits; at most 128 of them are used. ``suppress``: a
            detector gives detections.

    Returns:
        The largest difference from PyTorch, as a share of the standard deviation of an output: at most 1e-4, or 0.1
        with ``half``. With eight bits, how near the outputs are on some of the images. None where the file cannot be
        run.

    Raises:
        ImportError: If the format's extra is not installed.
        ValueError: If the path has another ending, the format does not take an option, the number of labels is not that
            of the classes, the model refuses the size, the folder has no images, or the outputs with eight bits have a
            correlation below 0.8 with the model's.
        FileNotFoundError: If there is no such folder.
        RuntimeError: If the file cannot be written, or does not compute what the model computes. It is not kept.

    Example:
        >>> import tempfile, timm
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     difference = export_model(model, f"{folder}/model.onnx", input_size=(3, 64, 64), dynamic_size=False)
        >>> difference < 1e-4
        True
    """
    from pathlib import Path

    from ._write import write_file
    from .formats import FORMATS, format_of

    if to and to not in FORMATS:
        raise ValueError(f"expected one of {', '.join(FORMATS)}; got {to!r}")
    form = FORMATS[to or format_of(Path(path))]
    return write_file(form, model, path, input_size=input_size, labels=labels, **options)

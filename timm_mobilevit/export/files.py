"""Files of every format: prepared, written, run and compared, and only then put in place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import replacing
from ._calibration import QuantizationLoss, find_calibration_images
from ._compare import HALF_TOLERANCE
from ._metadata import find_mean_and_std, write_metadata
from ._network import prepare
from .formats import FORMATS, format_of

_OF_THE_NETWORK = ("softmax", "image_input", "dynamic_batch", "dynamic_size")


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    to: str = "",
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    **options: Any,
) -> float | QuantizationLoss | None:
    """Write a model for another runtime: ONNX, OpenVINO, LiteRT, ncnn, ExecuTorch or Core ML.

    The model is optimized first (batch norms folded into convolutions) and is itself left as it is. The file is run in
    its runtime and compared with PyTorch before it is put in place, except where the runtime does not exist on this
    machine. ONNX files and Core ML packages have metadata about the model; elsewhere a JSON file beside it holds them:
    architecture, preprocessing, size of the images and class names, in ``digits.tflite.json`` for ``digits.tflite``.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: File to write, with the ending of the format; an existing one is replaced. OpenVINO writes a ``.bin``
            beside its ``.xml``; ncnn and Core ML write a directory.
        to: The format, a key of ``timm_mobilevit.export.formats.FORMATS``; by default that of the ending.
        input_size: Channels, height and width of the image. Only ONNX files take more than one image, or other sizes.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        options: Those that the format takes (``FORMATS[to].takes`` has their defaults). ``half``: weights in float16,
            in Core ML arithmetic too. ``softmax``: probabilities instead of logits. ``image_input``: pictures as they
            are decoded, uint8 [1, height, width, channels]. ``calibration``: folder of images, for eight bits; at most
            128 of them are used. ``suppress``: a detector gives detections.

    Returns:
        The largest difference from PyTorch, as a share of the standard deviation of an output: at most 1e-4, or 0.1
        with ``half``, or ten times what PyTorch's float32 is off from float64, where that is more. With eight bits, how
        near the outputs are on some of the images. None where the file cannot be run.

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
    path = Path(path)
    if to and to not in FORMATS:
        raise ValueError(f"expected one of {', '.join(FORMATS)}; got {to!r}")
    form = FORMATS[to or format_of(path)]
    if unknown := sorted(options.keys() - form.takes.keys()):
        raise ValueError(f"{form.title} does not take {', '.join(unknown)}; it takes {', '.join(form.takes)}")
    options = {**form.takes, **options}
    calibration = options.get("calibration")
    if calibration is not None and options.get("half"):
        raise ValueError("eight bits go with weights in float32: leave out half")
    form.check_target(path)
    form.require()
    if calibration is not None:
        options["calibration"] = Path(calibration)
        find_calibration_images(options["calibration"])
    of_the_network = {key: options.pop(key) for key in _OF_THE_NETWORK if key in options}
    if options.get("suppress"):  # detections are those of one image
        of_the_network.pop("dynamic_batch", None)
    network = prepare(model, input_size, labels, **of_the_network)
    if calibration is not None:
        find_mean_and_std(network.metadata, "calibration")
    if options.get("half"):
        network.tolerance = HALF_TOLERANCE
    with replacing(path) as temporary:
        found: float | QuantizationLoss | None = form.write(network, temporary, **options)
        if not form.has_metadata:
            write_metadata(temporary, network.metadata)
        if found is None and form.open is not None:
            found = network.compare(form.open(temporary, torch.get_num_threads()))
    return found


def export_onnx(model: nn.Module, path: str | os.PathLike[str], **options: Any) -> float | QuantizationLoss | None:
    """Write a model as ONNX, as :func:`export_model` does, with the options of this format.

    Those that other formats lack: ``dynamic_batch`` and ``dynamic_size``, by default for any number of images of any
    size; ``opset``, 17 or newer; ``half_io``, inputs and outputs in float16 too; ``input_name``; ``weight_type``, as
    :func:`~timm_mobilevit.export.quantize.quantize_onnx` takes it; ``argmax``: a segmentor gives each pixel's class.

    Example:
        >>> import tempfile, onnxruntime, timm, torch
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     difference = export_onnx(model, f"{folder}/model.onnx", input_size=(3, 64, 64), dynamic_size=False)
        ...     session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        >>> session.run(["logits"], {"images": torch.rand(3, 3, 64, 64).numpy()})[0].shape
        (3, 10)
    """
    return export_model(model, path, "onnx", **options)

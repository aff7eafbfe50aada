"""OpenVINO, LiteRT, ncnn, TensorRT and Core AI: written by timmx, run and compared here."""

import copy
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from .._files import replacing
from ..formats import FORMATS, require
from ..network.model import MobileViT
from ._calibration import NUM_COMPARED, calibration_images, check_correlation
from ._compare import HALF_TOLERANCE, TOLERANCE, as_list, check_outputs, make_images, output_names
from ._facts import find_facts, write_facts
from ._program import check_input_size
from ._target import check_target
from .quantize import QuantizationLoss
from .runtimes import open_file


def export_with_timmx(
    model: nn.Module,
    path: str | os.PathLike[str],
    to: str,
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    half: bool = False,
    calibration: str | os.PathLike[str] | None = None,
) -> float | QuantizationLoss | None:
    """Write a classifier for one image of a fixed size at a time, by timmx.

    The model is left as it is. The file is run in its runtime and compared with PyTorch before it is put in place,
    except where the runtime does not exist on this machine. A JSON file beside it holds architecture, preprocessing,
    size of the images and class names: ``digits.tflite.json`` for ``digits.tflite``.

    Args:
        model: A classifier of this package; it may have another number of classes or none.
        path: What to write, with the ending of the format in ``timm_mobilevit.formats.FORMATS``; an existing file is
            replaced. OpenVINO writes a ``.bin`` beside its ``.xml``; ncnn writes a directory.
        to: A format that timmx writes: "openvino", "litert", "ncnn", "tensorrt" or "coreai".
        input_size: Channels, height and width of the image.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        half: Whether to store the weights in float16.
        calibration: OpenVINO: folder of images like those that the model will see, for eight bits by NNCF, with its
            settings for transformers; at most 128 of them are used.

    Returns:
        The largest difference from PyTorch, as a share of the standard deviation of the output: at most 1e-4, or 0.1
        with ``half``. With eight bits, how near the outputs are on some of the images. None where the file cannot be
        run.

    Raises:
        ImportError: If the format's extra is not installed.
        ValueError: If the format is another one, the path has another ending, the model is another one, the number of
            labels is not that of the classes, the size is none that the model takes, the folder has no images, or the
            outputs with eight bits have a correlation below 0.8 with the model's.
        FileNotFoundError: If there is no such folder.
        RuntimeError: If timmx cannot write the file, or it does not compute what the model computes. It is not kept.
    """
    path = Path(path)
    ours = [name for name, form in FORMATS.items() if form.timmx is not None]
    if to not in ours:
        raise ValueError(f"timmx is used for {', '.join(ours)}; got {to!r}")
    form = FORMATS[to]
    check_target(path, to)
    if not isinstance(model, MobileViT):
        raise ValueError(
            f"{form.title} takes a classifier of this package, got {type(model).__name__}; backbones, detectors and "
            "segmentors are exported to ONNX, Core ML and ExecuTorch"
        )
    if calibration is not None and (half or "--int8" not in form.takes):
        raise ValueError(f"{form.title} has no eight bits here{', or no half precision with them' if half else ''}")
    require(to)
    check_input_size(input_size)
    model = copy.deepcopy(model).cpu().float().eval()
    images = make_images((1, *input_size))
    with torch.inference_mode():
        expected = as_list(model(images))  # what the model itself has to say about its input comes first
    facts = find_facts(model, input_size, labels)

    with replacing(path) as target, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        new = Path(scratch, path.name)
        _write(model, new, to, input_size, {**(form.timmx or {}), **(form.timmx_half if half else {})})
        difference: float | QuantizationLoss | None = None
        if calibration is not None:
            difference = _quantize_openvino(model, new, calibration_images(facts, Path(calibration)), path)
        elif not form.unverified:
            difference = check_outputs(
                expected,
                open_file(new)(images.numpy()),
                output_names(model, len(expected)),
                HALF_TOLERANCE if half else TOLERANCE,
            )
        for file in (new, *(new.with_suffix(sibling) for sibling in form.siblings)):
            os.replace(file, target.with_name(file.name))  # and nothing else that the writer has left
        write_facts(target, facts)
    return difference


def _write(model: MobileViT, path: Path, to: str, input_size: tuple[int, int, int], options: dict[str, Any]) -> None:
    """Have timmx write a model: it builds models by timm, from a directory as well as by name."""
    import timmx
    from timmx.errors import TimmxError

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        save_for_hf(model, folder, safe_serialization=True)
        with _kept_back(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own tracer, mostly
            try:
                timmx.export_model(
                    to, f"local-dir:{folder}", pretrained=True, input_size=input_size, output=path, **options
                )
            except TimmxError as error:
                raise RuntimeError(f"timmx could not write {FORMATS[to].title}: {error}") from error
    for name in FORMATS[to].leftovers:
        (path / name).unlink(missing_ok=True)


def _quantize_openvino(model: MobileViT, path: Path, images: list[Tensor], target: Path) -> QuantizationLoss:
    """Put a file with eight bits in the place of one in float32, and compare it with the model."""
    import openvino

    try:
        import nncf
    except ImportError as error:
        raise ImportError(
            f'eight bits in OpenVINO need nncf ({error}); install with: pip install "timm-mobilevit[openvino]"'
        ) from error
    with _kept_back():
        quantized = nncf.quantize(
            openvino.Core().read_model(path),
            nncf.Dataset([image.numpy() for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,  # keeps in float32 what attention loses its accuracy by
            subset_size=len(images),
        )
    path = path.with_name(f"int8-{path.name}")  # the float32 file is still open
    openvino.save_model(quantized, path, compress_to_fp16=False)
    run, compared = open_file(path), images[:NUM_COMPARED]
    with torch.inference_mode():
        expected = [model(image) for image in compared]
    loss = check_correlation(expected, [torch.from_numpy(run(image.numpy())[0]) for image in compared], target)
    for ending in (".bin", ".xml"):
        os.replace(path.with_suffix(ending), path.with_name(target.name).with_suffix(ending))
    return loss


@contextmanager
def _kept_back() -> Iterator[None]:
    """Print nothing of what this process and the programs that it starts say, hundreds of lines."""
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    saved = [os.dup(number) for number in (1, 2)]
    try:
        with tempfile.TemporaryFile() as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            try:
                # What an application has put in the place of the streams does not write to these numbers.
                with open(file.fileno(), "w", closefd=False) as text, redirect_stdout(text), redirect_stderr(text):
                    yield
            finally:
                for stream in streams:
                    stream.flush()
                for number, old in zip((1, 2), saved, strict=True):
                    os.dup2(old, number)
    finally:
        for old in saved:
            os.close(old)

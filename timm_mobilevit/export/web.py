"""A folder of static files: a page that classifies pictures in a browser, and the model as transformers.js reads it."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from .._files import check_file, check_folder, filling
from ._calibration import QuantizationLoss, find_calibration_images
from ._format import require
from ._metadata import find_metadata
from ._onnx_graph import PACKAGES
from .files import export_onnx
from .quantize import check_weight_type, quantize_onnx

_PAGE = Path(__file__).with_name("web_page")
_FOLDERS = ("onnx", "runtime")
_RUNTIME = (  # the page asks for the first two where there is WebGPU, otherwise for the others
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
)
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")  # of web_page/classify.js


def export_web(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] | None = None,
    labels: Sequence[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    weight_type: str = "int7",
    runtime: str | os.PathLike[str] | None = None,
) -> tuple[float, QuantizationLoss | None]:
    """Write a page that classifies pictures with a model in the browser.

    Any server of static files can give the folder out. ``index.html`` takes pictures from files and from the camera,
    and runs the model in ONNX Runtime Web, on WebGPU where there is one, otherwise in WebAssembly. It makes the pixels
    that timm's transform makes. Pictures stay on the device.

    transformers.js reads the folder too: ``config.json``, ``preprocessor_config.json`` and ``onnx/model.onnx``, with
    ``calibration`` also ``onnx/model_quantized.onnx``, which both take in WebAssembly.

    Args:
        model: A timm model: a classifier of RGB images.
        folder: Folder to write; what is there under other names stays.
        input_size: Channels, height and width of the images; by default those of the model's configuration.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's; otherwise numbers.
        calibration: Folder of images like those that the model will see, for a file in eight bits.
        weight_type: How that file stores weights, as :func:`quantize_onnx` says.
        runtime: The folder ``dist`` of the npm package onnxruntime-web, to be copied; the page then loads nothing from
            elsewhere. Otherwise it loads the runtime from a content delivery network, in the version that it names.

    Returns:
        The largest difference of the float32 file from PyTorch, as a share of the standard deviation of the logits, and
        with ``calibration`` what the file in eight bits lost.

    Raises:
        FileNotFoundError: If ``calibration`` or a file of ``runtime`` does not exist.
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If the model is no classifier of at least two classes, its configuration does not say mean and
            standard deviation, its images are not RGB or are cropped or resized in a way that the page does not know,
            or the folder is a file.
        RuntimeError: If a file does not compute what the model computes. Nothing is written then.

    Example:
        >>> import tempfile, timm
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        >>> folder = Path(tempfile.mkdtemp(), "site")
        >>> difference, _ = export_web(model, folder, input_size=(3, 64, 64))
        >>> json.loads((folder / "preprocessor_config.json").read_text())["size"]
        {'shortest_edge': 72}
    """
    require("onnx", "ONNX", PACKAGES)
    folder = Path(folder)
    check_folder(folder, [*(path.name for path in _PAGE.iterdir()), "config.json", "preprocessor_config.json"])
    for name in _FOLDERS:
        check_file(folder / name, is_folder=True)
    files = [Path(runtime, name) for name in _RUNTIME] if runtime is not None else []
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{runtime} has no {', '.join(missing)}; expected the folder dist of the npm package onnxruntime-web 1.30"
        )
    if int(getattr(model, "num_classes", 0)) < 2 or hasattr(model, "export_metadata"):  # type: ignore[arg-type]
        raise ValueError(f"a page is for classifiers of two or more classes, but {type(model).__name__} is none")
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    if missing := [key for key in ("mean", "std") if not cfg.get(key)]:
        raise ValueError(f"the model's pretrained_cfg does not say {', '.join(missing)} of the images; set them there")
    data = resolve_data_config({"input_size": input_size} if input_size else {}, model=model)
    if calibration is not None:
        check_weight_type(weight_type)
        find_calibration_images(Path(calibration))
    preprocessor, config = _preprocessor(data), _config(model, data["input_size"], labels)
    if calibration is None:
        config["transformers.js_config"] = {"dtype": "fp32"}  # otherwise it asks for eight bits in WebAssembly

    with filling(folder) as stage:
        difference = export_onnx(
            model,
            stage / "onnx" / "model.onnx",
            input_size=data["input_size"],
            dynamic_size=False,
            input_name="pixel_values",  # transformers.js feeds no other
            labels=labels,
        )
        loss = None
        if calibration is not None:
            quantized = stage / "onnx" / "model_quantized.onnx"
            loss = quantize_onnx(stage / "onnx" / "model.onnx", quantized, calibration, weight_type=weight_type)
        for name, content in (("config", config), ("preprocessor_config", preprocessor)):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (stage / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
        for path in _PAGE.iterdir():
            shutil.copyfile(path, stage / path.name)
        if files:
            _bring_runtime(stage, files)
    assert isinstance(difference, float)  # it is with check=True
    return difference, loss


def _preprocessor(data: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing in the names of transformers.js; ``interpolation`` is for the page.

    transformers.js has no filter of PIL's: in Node, Lanczos is the only one of its methods that uses all pixels of a
    picture that becomes smaller, and comes nearest; in a browser it always takes the canvas's own.
    """
    channels, height, width = data["input_size"]
    if channels != 3:
        raise ValueError(f"a page is for models of RGB images, but this one takes {channels} channels")
    if data["interpolation"] not in _INTERPOLATIONS:
        raise ValueError(
            f"a page resizes by {', '.join(_INTERPOLATIONS)}, but the model's configuration has the interpolation "
            f"{data['interpolation']!r}"
        )
    edges = [math.floor(side / data["crop_pct"]) for side in (height, width)]
    if data["crop_pct"] > 1:
        raise ValueError(f"a page does not pad pictures, which a crop_pct of {data['crop_pct']} asks for")
    if data["crop_mode"] == "squash":
        size = {"height": edges[0], "width": edges[1]}
    elif data["crop_mode"] == "center" and height == width:
        size = {"shortest_edge": edges[0]}
    else:
        raise ValueError(
            f"a page cuts squares out of the centre, or squashes pictures; got {height}×{width} with the crop_mode "
            f"{data['crop_mode']!r}"
        )
    return {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 1,
        "interpolation": data["interpolation"],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
        "do_flip_channel_order": False,
    }


def _config(model: nn.Module, input_size: tuple[int, int, int], labels: Sequence[str] | None) -> dict[str, Any]:
    """Return the configuration of the model; transformers.js knows every MobileViT by the name of the first version."""
    metadata = find_metadata(model, input_size, labels)
    names = metadata.get("labels") or range(int(model.num_classes))  # type: ignore[arg-type]
    return {
        "model_type": "mobilevit",
        "architectures": ["MobileViTForImageClassification"],
        "id2label": {str(index): str(name) for index, name in enumerate(names)},
    } | {key: metadata[key] for key in ("architecture", "tag", "license") if key in metadata}


def _bring_runtime(stage: Path, files: Sequence[Path]) -> None:
    """Copy the runtime beside the page, and make the page load it from there."""
    (stage / "runtime").mkdir()
    for file in files:
        shutil.copyfile(file, stage / "runtime" / file.name)
    page = stage / "index.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("<html ", '<html data-runtime="runtime/" ', 1), encoding="utf-8")

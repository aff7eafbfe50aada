"""Eight-bit ONNX: static quantisation after training, calibrated on a folder of images."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageDataset, create_transform, get_img_extensions, resolve_data_config

_DATA_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_IMAGE_MODES = {1: "L", 3: "RGB"}  # as PIL calls them


def quantize_onnx(
    model_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    calibration: str | os.PathLike[str],
    *,
    data_config: Mapping[str, Any] | None = None,
    num_images: int = 128,
    reduce_range: bool = False,
) -> None:
    """Quantise an ONNX file of :func:`export_onnx` to eight bits, for ONNX Runtime on CPUs.

    Convolutions, linear layers and SiLU compute with eight bits: weights signed, one scale per output channel;
    activations unsigned, one scale per tensor. Attention and norms stay in float32. Input and output of the file are as
    before: float32 images, float32 logits.

    Args:
        model_path: ONNX file with one input, images [batch, channels, height, width].
        out: File to write; an existing one is replaced.
        calibration: Folder of images like those that the model will see, at any depth; class folders are not needed.
            Only the ranges of the activations are taken from them.
        data_config: Preprocessing that differs from what the file's metadata say: ``input_size``, ``mean``, ``std``,
            ``interpolation``, ``crop_pct``, ``crop_mode``, as timm names them.
        num_images: How many images to use at most; they are drawn evenly from the folder.
        reduce_range: Whether weights have seven bits. x86 processors without VNNI instructions add products of eight
            bits with saturation, and can be wrong without this.

    Raises:
        FileNotFoundError: If the model or the folder does not exist.
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If the folder holds no images, the preprocessing is not known, or the model's input is none of
            images one at a time.

    Example:
        >>> import tempfile, timm, torch
        >>> from pathlib import Path
        >>> from torchvision.utils import save_image
        >>> from timm_mobilevit.export import export_onnx
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_image(torch.rand(3, 64, 64), f"{folder}/image.png")
        ...     export_onnx(model, f"{folder}/model.onnx", input_size=(3, 64, 64), dynamic_size=False, check=False)
        ...     quantize_onnx(f"{folder}/model.onnx", f"{folder}/int8.onnx", folder)
        ...     sizes = [Path(folder, name).stat().st_size for name in ("model.onnx", "int8.onnx")]
        >>> sizes[1] < sizes[0] / 2
        True
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ImportError(
            f'quantisation needs onnx and onnxruntime ({error}); install with: pip install "timm-mobilevit[onnx]"'
        ) from error

    model_path, out, calibration = Path(model_path), Path(out), Path(calibration)
    if not model_path.is_file():
        raise FileNotFoundError(f"no ONNX file {model_path}")
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    original = onnx.load(model_path)
    name, config = _input(original, model_path, data_config or {})
    dataset = _open_folder(calibration, config)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        prepared, quantized = Path(scratch) / "prepared.onnx", Path(scratch) / "quantized.onnx"
        # Folds constants, and joins linear layers with their biases. torch's exporter has written all shapes already.
        quant_pre_process(model_path, prepared, skip_symbolic_shape=True)
        nodes = _nodes_to_quantize(onnx.load(prepared).graph)
        quantize_static(
            prepared,
            quantized,
            _Reader({name: image} for image in _draw(dataset, num_images)),
            quant_format=QuantFormat.QDQ,  # any runtime reads it; QOperator nodes are ONNX Runtime's own
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            # On x86, ONNX Runtime has fast kernels for unsigned activations with signed weights only: with signed
            # activations the file is slower than float32.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=reduce_range,
            # The bias of a MatMul is a node of its own: one kernel does both, and the sum stays in float32.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
            # Ranges are minimum and maximum over the images, the default. Percentiles and entropy keep every activation
            # of every image in memory, and were no better on the digits than 360 scans can tell.
        )
        result = onnx.load(quantized)
        onnx.helper.set_model_props(result, {prop.key: prop.value for prop in original.metadata_props})
        onnx.save(result, quantized)
        os.replace(quantized, out)


class _Reader:
    """What ONNX Runtime reads calibration data from."""

    def __init__(self, feeds: Iterator[dict[str, NDArray[np.float32]]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.feeds, None)


def _input(model: Any, path: Path, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name of the input, and timm's data configuration for what it takes."""
    inputs = model.graph.input
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]  # 0: any
    if len(inputs) != 1 or len(shape) != 4 or shape[0] > 1:
        raise ValueError(
            f"{path} must have one input, images [batch, channels, height, width], and take them one at a time; "
            f"it has {len(inputs)}, the first of shape {shape} (0: any)"
        )
    config = {prop.key: json.loads(prop.value) for prop in model.metadata_props if prop.key in _DATA_KEYS} | {
        **overrides
    }
    if 0 not in shape[1:]:
        config["input_size"] = shape[1:]
    missing = [key for key in ("input_size", "mean", "std") if key not in config]
    if missing:
        raise ValueError(f"the metadata of {path} do not say {', '.join(missing)}; give them in data_config")
    if config["input_size"][0] not in _IMAGE_MODES:
        raise ValueError(f"images have one channel or three, but {path} takes {config['input_size'][0]}")
    return inputs[0].name, resolve_data_config(config)


def _open_folder(folder: Path, config: dict[str, Any]) -> ImageDataset:
    """The images of a folder as the model takes them."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; quantisation measures the ranges of the activations on images: expected a folder of "
            "a hundred or so of the kind that the model is for"
        )
    mode = _IMAGE_MODES[config["input_size"][0]]
    try:
        return ImageDataset(folder, transform=create_transform(**config), input_img_mode=mode)
    except RuntimeError as error:  # timm found none
        raise ValueError(
            f"no images in {folder}; expected files that end in {', '.join(get_img_extensions())}, at any depth"
        ) from error


def _draw(dataset: ImageDataset, count: int) -> Iterator[NDArray[np.float32]]:
    """Images [1, channels, height, width], drawn evenly: a folder of classes is in their order."""
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=int):
        try:
            image, _ = dataset[int(index)]
        except RuntimeError as error:  # timm takes the next image for one that it cannot read, ten times
            raise ValueError(f"the images in the calibration folder cannot be read: {error}") from error
        yield image.numpy()[None]


def _nodes_to_quantize(graph: Any) -> list[Any]:
    """Convolutions, linear layers and SiLU, which take nearly all of the time.

    The rest gains nothing and loses accuracy: with every operator in eight bits, a mobilevitv2_1_0 trained on the
    digits of ``benchmarks.digits`` no longer recognises most of them, in large part because of its norms.
    """
    weights = {tensor.name for tensor in graph.initializer}
    sigmoids = {node.output[0] for node in graph.node if node.op_type == "Sigmoid"}
    return [
        node
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "Sigmoid")
        or (node.op_type == "MatMul" and node.input[1] in weights)  # a linear layer where the batch is of any size
        or (node.op_type == "Mul" and not sigmoids.isdisjoint(node.input))
    ]

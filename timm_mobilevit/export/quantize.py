"""Eight bits in ONNX: static quantization after training, calibrated and compared on images of a folder."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._files import check_file, replacing
from ._calibration import MIN_CORRELATION, QuantizationLoss, check_correlation, correlation, draw_images, few
from ._format import check_name, require
from ._metadata import read_metadata
from ._onnx_graph import PACKAGES, open_onnx

# How the weights are stored: ONNX Runtime's type, and whether only seven of its bits are used. Without VNNI, x86
# processors add two products of an unsigned and a signed byte in 16 bits and clamp the sum: 2 * 255 * 127 does not fit,
# 2 * 255 * 64 does. For two unsigned bytes, ONNX Runtime has slower code there, whose sums are exact.
WEIGHT_TYPES = {"int7": ("QInt8", True), "int8": ("QInt8", False), "uint8": ("QUInt8", False)}


def quantize_onnx(
    model_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    calibration: str | os.PathLike[str],
    *,
    num_images: int = 128,
    weight_type: str = "int7",
) -> QuantizationLoss:
    """Quantize an ONNX file of ``export_onnx`` to eight bits, for ONNX Runtime on CPUs.

    Convolutions, linear layers and SiLU compute with eight bits: weights with one scale per output channel, activations
    unsigned with one scale per tensor. Attention and norms stay in float32. Input and output of the file are as before.

    Both files are run on some of the images before the new one is put in place, on this processor.

    Args:
        model_path: ONNX file of ``timm-mobilevit export``, whose metadata say how images are preprocessed.
        out: File to write; an existing one is replaced.
        calibration: Folder of images like those that the model will see, at any depth; class folders are not needed.
            Only the ranges of the activations are taken from them.
        num_images: How many images to use at most, evenly spaced in the folder.
        weight_type: How weights are stored. "int7", signed numbers from -64 to 64 in a byte each: right on every
            processor. "uint8", unsigned with the zero at 128: one bit more, right on every processor, slower on x86
            than the others. "int8", signed: one bit more, as fast as "int7", but wrong on x86 processors without VNNI
            instructions (`avx512_vnni` or `avx_vnni` among the flags that `lscpu` shows), where sums saturate.

    Returns:
        How near the outputs of the new file are to those of the old one.

    Raises:
        FileNotFoundError: If the model or the folder does not exist.
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If the folder holds no images, the metadata do not say the preprocessing, the type of the weights is
            unknown, or the outputs of the new file have a correlation below 0.8 with those of the old one.

    Example:
        >>> import tempfile, timm, torch
        >>> from pathlib import Path
        >>> from torchvision.utils import save_image
        >>> from timm_mobilevit.export import export_onnx
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_image(torch.rand(3, 64, 64), f"{folder}/image.png")
        ...     size = {"input_size": (3, 64, 64), "dynamic_batch": False, "dynamic_size": False}
        ...     _ = export_onnx(model, f"{folder}/model.onnx", **size)
        ...     loss = quantize_onnx(f"{folder}/model.onnx", f"{folder}/int8.onnx", folder)
        ...     sizes = [Path(folder, name).stat().st_size for name in ("model.onnx", "int8.onnx")]
        >>> sizes[1] < sizes[0] / 2, loss.correlation > 0.8
        (True, True)
    """
    require("onnx", "quantization", PACKAGES)
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model_path, out, calibration = Path(model_path), Path(out), Path(calibration)
    check_name(out)
    check_file(out)
    if not model_path.is_file():
        raise FileNotFoundError(f"no ONNX file {model_path}")
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    check_weight_type(weight_type)
    images = draw_images(read_metadata(model_path), calibration, num_images)
    original = onnx.load(model_path)
    feeds = iter([{original.graph.input[0].name: image.numpy()} for image in images])
    onnx_type, reduce_range = WEIGHT_TYPES[weight_type]

    with replacing(out) as quantized, tempfile.TemporaryDirectory(dir=quantized.parent) as scratch:
        prepared = Path(scratch, "prepared.onnx")
        # Folds constants, and joins linear layers with their biases. torch's exporter has written all shapes already.
        quant_pre_process(model_path, prepared, skip_symbolic_shape=True)
        nodes = _nodes_to_quantize(onnx.load(prepared).graph)
        quantize_static(
            prepared,
            quantized,
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            quant_format=QuantFormat.QDQ,  # any runtime reads it; QOperator nodes are ONNX Runtime's own
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            # On x86, ONNX Runtime has no fast kernels for signed activations: the file is slower than float32.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType[onnx_type],
            reduce_range=reduce_range,
            # The bias of a MatMul is a node of its own: one kernel does both, and the sum stays in float32.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
            # Ranges are minimum and maximum over the images, the default. Percentiles and entropy keep every activation
            # of every image in memory, and were no better on the digits than 360 scans can tell.
        )
        result = onnx.load(quantized)
        onnx.helper.set_model_props(result, {prop.key: prop.value for prop in original.metadata_props})
        used = {node.domain for node in result.graph.node}
        for opset in [opset for opset in result.opset_import if opset.domain not in used]:
            result.opset_import.remove(opset)  # ONNX Runtime imports all domains that it knows
        onnx.save(result, quantized)
        images = few(images)
        before, after = _run(model_path, images), _run(quantized, images)
        remedy = ""
        if not correlation(before, after) >= MIN_CORRELATION:
            remedy = _remedy(correlation(before, _run(quantized, images, exact_sums=True)))
        return check_correlation(before, after, remedy)


def check_weight_type(weight_type: str) -> None:
    """Refuse an unknown way to store weights."""
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"weight_type must be one of {', '.join(WEIGHT_TYPES)}, got {weight_type!r}")


def _run(path: Path, images: list[Tensor], *, exact_sums: bool = False) -> list[list[NDArray[Any]]]:
    run = open_onnx(path, exact_sums=exact_sums)
    return [run(image.numpy()) for image in images]


def _remedy(exact: float) -> str:
    """Say what to do about a file that is too far from its float32 version, by its correlation with exact sums."""
    if exact >= MIN_CORRELATION:
        return (
            f"with exact sums it is {exact:.3f}, so sums of products saturate: this processor has no VNNI "
            "instructions. Use the weight type int7 or uint8, which every processor computes right; or quantize on a "
            "processor with VNNI instructions, for such processors"
        )
    if np.isnan(exact):
        return "the outputs are not finite, or the same everywhere: check the float32 file and the calibration images"
    return (
        "the ranges of the activations or the bits of the weights do not suffice. Calibrate on a hundred or so images "
        "of the kind that the model is for, or use the weight type uint8; otherwise this model has to stay in float32"
    )


def _nodes_to_quantize(graph: Any) -> list[Any]:
    """Choose convolutions, linear layers and SiLU, which take nearly all of the time.

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

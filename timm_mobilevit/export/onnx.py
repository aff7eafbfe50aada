"""ONNX: one self-contained file in the standard operators, for any number of images of any size, or for one."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ._format import Format
from ._onnx_graph import EXPORTER_OPSET, PACKAGES, open_onnx, write_graph

if TYPE_CHECKING:
    from ._calibration import QuantizationLoss
    from ._network import Network

OLDEST_OPSET = 17


def _write(
    network: "Network",
    path: Path,
    *,
    opset: int,
    half: bool,
    half_io: bool,
    input_name: str,
    calibration: Path | None,
    weight_type: str,
    suppress: bool,
    argmax: bool,
) -> "float | QuantizationLoss":
    from .quantize import check_weight_type, quantize_onnx
    from .tails import attach, find_tail

    if opset < OLDEST_OPSET:
        raise ValueError(f"opset must be {OLDEST_OPSET} or newer, got {opset}")
    if half_io and not half:
        raise ValueError("half_io is for half=True: only a file in half precision has float16 inputs and outputs")
    check_weight_type(weight_type)
    tail = find_tail(network, suppress=suppress) if suppress or argmax else None
    write_graph(network, path, opset=opset, half=half, half_io=half_io, input_name=input_name)
    check_valid(path)
    found = network.compare(open_onnx(path))
    if calibration is not None:
        found = quantize_onnx(path, path, calibration, weight_type=weight_type)
    if tail is not None:
        attach(tail, network, path)
    return found


def check_valid(path: Path) -> None:
    """Refuse a file that not every runtime takes.

    Raises:
        RuntimeError: If it is not valid, or needs operators outside the standard.
    """
    import onnx

    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except Exception as error:  # the checker and shape inference have classes of their own
        raise RuntimeError(f"the exported file is not valid ONNX: {error}") from error
    proto = onnx.load(path)
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain})
    if foreign or proto.functions:
        raise RuntimeError(f"the exported file needs operators that are not ONNX's own: {', '.join(foreign)}")


FORMAT = Format(
    "onnx",
    "ONNX",
    ".onnx",
    PACKAGES,
    _write,
    open_onnx,
    runtime="onnxruntime",
    takes={
        "dynamic_batch": True,
        "dynamic_size": True,
        "opset": EXPORTER_OPSET,
        "half": False,
        "half_io": False,
        "softmax": False,
        "image_input": False,
        "input_name": "images",
        "calibration": None,
        "weight_type": "int7",
        "suppress": False,
        "argmax": False,
    },
    has_metadata=True,
)

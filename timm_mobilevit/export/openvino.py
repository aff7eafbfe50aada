"""OpenVINO: an ``.xml`` file with its weights beside it, converted from the ONNX file of the same network."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._format import Format, require
from ._onnx_graph import PACKAGES, write_graph
from ._quietly import call_quietly

if TYPE_CHECKING:
    from ._network import Network


def _write(network: "Network", path: Path, *, half: bool, calibration: Path | None) -> None:
    import openvino

    if calibration is not None:
        require("openvino", "eight bits in OpenVINO", ("nncf",))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file, images = Path(folder, "model.onnx"), Path(folder, "images.npy")
        write_graph(network, file)
        model = openvino.convert_model(file)
        if calibration is None:
            openvino.save_model(model, path, compress_to_fp16=half)
            return
        np.save(images, np.stack([image.numpy() for image in network.calibrate(calibration)]))
        openvino.save_model(model, file.with_suffix(".xml"), compress_to_fp16=False)
        call_quietly(_quantize, file.with_suffix(".xml"), images, path, title="OpenVINO")


def _quantize(path: str, images: str, out: str) -> None:
    """Quantize a file, in a process of its own."""
    import nncf
    import openvino

    model, dataset = openvino.Core().read_model(path), list(np.load(images))
    quantized = nncf.quantize(
        model,
        nncf.Dataset(dataset),
        model_type=nncf.ModelType.TRANSFORMER,  # keeps operators of attention in float32 that cost accuracy
        subset_size=len(dataset),
        ignored_scope=nncf.IgnoredScope(names=_after_the_weights(model), validate=False),
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)


def _after_the_weights(model: Any) -> list[str]:
    """Name the nodes behind the last convolution and linear layer: eight bits are too few for boxes."""
    needed: set[str] = set()
    after = []
    for node in reversed(model.get_ordered_ops()):
        name, kind = node.get_friendly_name(), node.get_type_name()
        if kind in ("Convolution", "GroupConvolution", "MatMul") or name in needed:
            needed |= {source.get_node().get_friendly_name() for source in node.input_values()}
        elif kind not in ("Constant", "Parameter", "Result"):
            after.append(name)
    return after


def open_openvino(path: Path, threads: int) -> Callable[[Any], list[Any]]:
    """Load a file into OpenVINO, which reads ONNX files too."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(os.fspath(path), "CPU", settings).create_infer_request()
    return lambda images: [np.array(output) for output in request.infer([images]).values()]


FORMAT = Format(
    "openvino",
    "OpenVINO",
    ".xml",
    (*PACKAGES, "openvino"),
    _write,
    open_openvino,
    runtime="openvino",
    takes={"half": False, "softmax": False, "image_input": False, "calibration": None},
    siblings=(".bin",),
)

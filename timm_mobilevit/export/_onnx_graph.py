"""The ONNX graph that torch exports, adapted to every runtime: ONNX files have it, and OpenVINO's come from it."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__

if TYPE_CHECKING:
    from torch import nn

    from ._network import Network

EXPORTER_OPSET = 18  # what torch's exporter writes; it only converts to newer ones
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the last converts to half precision, too
_IR_VERSION = 8
_SMALLEST_TRACED = 128  # pixels: two patches a side in the last map of every model of this package


def write_graph(
    network: "Network",
    path: Path,
    *,
    opset: int = EXPORTER_OPSET,
    half: bool = False,
    half_io: bool = False,
    input_name: str = "images",
) -> None:
    """Write the ONNX file of a network, as ``export_model`` says, without running it."""
    from ._half import to_half
    from ._opset17 import to_opset_17

    shape = network.shapes[0]
    if sizes := network.axes.keys() - {0}:  # torch.export takes a size of 1 for a constant: no map may have one pixel
        shape = tuple(max(side, _SMALLEST_TRACED) if i in sizes else side for i, side in enumerate(shape))
    proto = translate(
        network.optimized,
        (network.images(shape),),
        [input_name],
        network.names,
        (network.axes,) if network.axes else None,
        max(opset, EXPORTER_OPSET),
    )
    if opset < EXPORTER_OPSET:
        to_opset_17(proto)
    if half:
        proto = to_half(proto, half_io=half_io)
    save(proto, path, network.metadata)


def translate(
    model: "nn.Module",
    args: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    axes: tuple[dict[int, Any], ...] | None = None,
    opset: int = EXPORTER_OPSET,
) -> Any:
    """Export a module as an ``onnx.ModelProto`` with the types of all tensors.

    Raises:
        ValueError: If the module does not take every size of the axes, which have names, of its inputs.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec|.*rename_mapping", FutureWarning)  # torch about its own code
        warnings.filterwarnings("ignore", r".*create_unbacked_symint", FutureWarning)
        try:
            # The exporter that goes through torch.export: the older one writes each computation with a size as a chain
            # of nodes.
            program = torch.onnx.export(
                model,
                args,
                input_names=inputs,
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=axes,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            if not axes:
                raise
            names = " and ".join(str(axis) for axis in axes[0].values())
            raise ValueError(
                f"{type(model).__name__} cannot be exported for any {names}: export it with dynamic_size=False and, "
                f"should that not do, dynamic_batch=False ({error.__cause__ or error})"
            ) from error
    assert program is not None
    return program.model_proto


def save(proto: Any, path: Path, metadata: dict[str, Any]) -> None:
    """Write a file with its metadata, and with nothing about the machine that it was made on."""
    import onnx

    proto.producer_name, proto.producer_version = "timm-mobilevit", __version__
    # Older runtimes and compilers for NPUs refuse newer ones (onnxruntime#20559); nothing in the file needs more.
    proto.ir_version = min(proto.ir_version, _IR_VERSION)
    graph = proto.graph
    # tract refuses symbols in the types of values between the nodes; every runtime infers these types itself.
    for value in list(graph.value_info):
        if any(size.dim_param for size in value.type.tensor_type.shape.dim):
            graph.value_info.remove(value)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:  # the default, which OpenCV 5 does not know
            node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1, "f"))))
    # torch's exporter writes the stack trace of each node, with the paths of the machine.
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.doc_string = ""
    onnx.helper.set_model_props(proto, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    onnx.save(proto, os.fspath(path))


def open_onnx(source: Path | bytes, threads: int = 1, *, exact_sums: bool = False) -> Callable[[Any], list[Any]]:
    """Load a file, or its bytes, into ONNX Runtime, as a function from images to outputs.

    With ``exact_sums``, products in eight bits are added up exactly, on processors where the sums would saturate, too.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", str(int(exact_sums)))
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes
        name = "the graph" if isinstance(source, bytes) else source
        raise ValueError(f"ONNX Runtime cannot load {name}: {error}") from error
    (feed,) = session.get_inputs()

    def run(images: Any) -> list[Any]:
        images = images.astype(np.float16) if feed.type == "tensor(float16)" else images
        outputs: list[Any] = session.run(None, {feed.name: images})
        return outputs

    return run

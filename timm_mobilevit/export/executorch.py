"""ExecuTorch: a ``.pte`` file for phones and other small devices, computed by XNNPACK.

XNNPACK, a library for CPUs, computes all of a classifier; some operators of detectors and segmentors are ExecuTorch's
portable ones, which an application has to link too. With eight bits, convolutions, linear layers, sums of two maps
and the pooling compute with them: weights signed with one scale per output channel, activations signed with one scale
per tensor. Attention, norms and SiLU stay in float32, as do input and output. With half precision, weights and
arithmetic are float16, input and output float32.
"""

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._format import Format

if TYPE_CHECKING:
    from ._network import Network


def _write(network: "Network", path: Path, *, half: bool, calibration: Path | None) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from ._interface import WithInterface
    from ._xnnpack import FOR_XNNPACK

    wrapped = network.optimized if isinstance(network.optimized, WithInterface) else WithInterface(network.optimized)
    if half:
        wrapped.halve()
    rewrite = None
    if calibration is not None:
        rewrite = partial(_quantize, images=network.calibrate(calibration), depth=2)  # the wrapper and the model
    program = network.trace(network=wrapped.eval(), rewrite=rewrite, decompositions=FOR_XNNPACK)
    if shutil.which("flatc") is None:
        # ExecuTorch looks for its compiler on the PATH. There it is only if this Python's environment is activated.
        os.environ.setdefault("FLATC_EXECUTABLE", str(Path(sysconfig.get_path("scripts"), "flatc")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)  # ExecuTorch and torch about each other's code
        warnings.filterwarnings("ignore", r"guard_size_oblivious", FutureWarning)
        executable = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    with path.open("wb") as file:
        executable.write_to_file(file)


def _quantize(graph: Any, *, images: Sequence[Any], depth: int = 1) -> Any:
    """Quantize the operators that XNNPACK computes in eight bits, with ranges from images."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc, unused-ignore]
        """A quantizer that leaves a detector's own operators in float32: eight bits are too few for boxes.

        The filter that XNNPACK's quantizer offers does not reach concatenations.
        """

        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            for node in model.graph.nodes:
                if len(node.meta.get("nn_module_stack", ())) <= depth:  # only that of the detector itself
                    node.meta.pop("quantization_annotation", None)
            return model

    quantizer = Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(graph, quantizer)
    for image in images:
        observed(image)
    return convert_pt2e(observed)


def _open(path: Path, threads: int) -> Callable[[Any], list[Any]]:
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)  # there is one for the whole process; safe while no program of it runs
    method = Runtime.get().load_program(path).load_method("forward")
    if method is None:
        raise ValueError(f"{path} has no method forward")
    return lambda images: [output.numpy() for output in method.execute([torch.from_numpy(images).contiguous()])]


FORMAT = Format(
    "executorch",
    "ExecuTorch",
    ".pte",
    ("executorch",),
    _write,
    _open,
    runtime="executorch",
    takes={"half": False, "softmax": False, "image_input": False, "calibration": None},
)

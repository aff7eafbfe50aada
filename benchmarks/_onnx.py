"""Networks in ONNX Runtime: ours by this package's export, timm's by timm's own."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

OPSET = 18  # the same for all


def export_ours(network: nn.Module, path: Path, size: int) -> None:
    """Write one of our networks, for any batch of images of this size: what timm's export does too."""
    from timm_mobilevit.export import export_onnx

    export_onnx(network, path, input_size=(3, size, size), dynamic_size=False, opset=OPSET)


def export_timm(network: nn.Module, path: Path, size: int, *, dynamo: bool) -> None:
    """Write a network of timm with timm's own function.

    Args:
        network: Network that was built with ``exportable=True``, as timm's onnx_export.py does.
        path: File to write.
        size: Side of the square images, in pixels.
        dynamo: Which of timm's two exporters: the one over torch.export, or the one over TorchScript, its default.
    """
    from timm.utils.onnx import onnx_export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing and deprecation: not ours to mend
        onnx_export(
            network, str(path), input_size=(3, size, size), batch_size=2, opset=OPSET, use_dynamo=dynamo, verbose=False
        )


def quantize(path: Path, out: Path, size: int) -> None:
    """Quantise a file to int8, calibrated on noise: good enough for its speed, useless for its accuracy."""
    from timm_mobilevit.export import quantize_onnx

    folder = out.with_suffix(".calibration")
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(8):
        noise = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    quantize_onnx(path, out, folder)


def count_nodes(path: Path) -> int:
    """Nodes of the graph in a file."""
    import onnx

    return len(onnx.load(path).graph.node)


def run(path: Path, images: Tensor, threads: int) -> Callable[[], list[np.ndarray]]:
    """Return a call of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: session.run(None, feed)

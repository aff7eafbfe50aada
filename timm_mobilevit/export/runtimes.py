"""Exported files in their runtimes, on the CPU of this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..formats import FORMATS, format_of, require
from ._facts import read_facts

Run = Callable[[NDArray[np.float32]], list[NDArray[Any]]]  # from images [1, channels, height, width] to all outputs


class ExportedModel(nn.Module):
    """A file of any format that runs here, as a model: what evaluates models, and what times them, takes it too.

    What timm knows about a model is read from the metadata of an ONNX file, or from the JSON file beside the others.
    The runtime computes in float32 where it lets one choose, and gets one image at a time.

    Args:
        path: File that ``timm-mobilevit export`` wrote, or the directory of a format that has several.
        threads: How many threads the runtime uses; None for as many as PyTorch.

    Attributes:
        pretrained_cfg: What the file says about itself, by the names of timm.
        num_classes: Size of the last axis of its first output.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the extra of the format is not installed.
        ValueError: If the format is unknown or does not run here.

    Shape:
        Input [B, channels, height, width] of the size that the file takes. Outputs as the model's: a tensor, or a list
        of several.

    Example:
        >>> import tempfile, timm
        >>> from timm_mobilevit.export import export_onnx
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10).eval()
        >>> images = torch.rand(2, 3, 64, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_onnx(model, f"{folder}/model.onnx", input_size=(3, 64, 64), dynamic_size=False)
        ...     exported = ExportedModel(f"{folder}/model.onnx")
        ...     exported.num_classes, torch.allclose(exported(images), model(images), atol=1e-4)
        (10, True)
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        super().__init__()
        path = Path(path)
        self.run = open_file(path, threads=threads)
        facts = read_facts(path)
        self.pretrained_cfg = facts | {"input_size": tuple(facts["input_size"]), "label_names": facts.get("labels")}
        outputs = self.run(np.zeros((1, *facts["input_size"]), dtype=np.float32))
        self.num_classes = self.pretrained_cfg["num_classes"] = int(outputs[0].shape[-1])

    def forward(self, x: Tensor) -> Any:
        """Run the file on each image of a batch."""
        runs = [self.run(image[None].cpu().float().numpy()) for image in x]
        outputs = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*runs, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs


def open_file(path: Path, *, threads: int | None = None) -> Run:
    """Load a file into its runtime.

    Args:
        path: The file, or the directory of a format that has several.
        threads: How many threads the runtime uses; None for as many as PyTorch.

    Returns:
        A function from images [1, channels, height, width] to the outputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the extra of the format is not installed.
        ValueError: If the format is unknown or does not run here.
    """
    name = format_of(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if FORMATS[name].unverified:
        raise ValueError(f"{path} cannot be run here: {FORMATS[name].unverified}")
    require(name, to_write=False)
    return _OPEN[name](path, threads or torch.get_num_threads())


def _open_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    source, output = session.get_inputs()[0], session.get_outputs()[0]

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        feed: NDArray[Any] = images
        if source.type == "tensor(uint8)":  # pictures as they are decoded; mean and std are in the file
            feed = np.round(255 * images).astype(np.uint8).transpose(0, 2, 3, 1)
        elif source.type == "tensor(float16)":
            feed = images.astype(np.float16)
        outputs: list[NDArray[Any]] = session.run(None, {source.name: feed})
        if output.name == "probabilities":  # of which these are logits
            outputs = [np.log(np.maximum(outputs[0], np.finfo(outputs[0].dtype).tiny))]
        return outputs

    return run


def open_openvino(path: Path, threads: int) -> Run:
    """Load a file into OpenVINO, which reads ONNX files too."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(os.fspath(path), "CPU", settings).create_infer_request()
    return lambda images: [np.array(output) for output in request.infer([images]).values()]


def _open_litert(path: Path, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path), num_threads=threads)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    targets = interpreter.get_output_details()

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(target["index"]) for target in targets]

    return run


def _open_ncnn(path: Path, threads: int) -> Run:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(os.fspath(path / "model.ncnn.param")) or net.load_model(os.fspath(path / "model.ncnn.bin")):
        raise ValueError(f"ncnn cannot load {path}: expected the files model.ncnn.param and model.ncnn.bin in it")

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        image = np.ascontiguousarray(images[0])  # ncnn has no batches
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(image))
            code, output = extractor.extract("out0")
            if code:
                raise RuntimeError(f"ncnn could not compute out0 of {path}: code {code}")
            return [np.array(output)[None]]

    return run


def _open_executorch(path: Path, threads: int) -> Run:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)  # there is one for the whole process; safe while no program of it runs
    method = Runtime.get().load_program(path).load_method("forward")
    if method is None:
        raise ValueError(f"{path} has no method forward")
    return lambda images: [output.numpy() for output in method.execute([torch.from_numpy(images)])]


_OPEN: dict[str, Callable[[Path, int], Run]] = {
    "onnx": _open_onnx,
    "executorch": _open_executorch,
    "openvino": open_openvino,
    "litert": _open_litert,
    "ncnn": _open_ncnn,
}

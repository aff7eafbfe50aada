"""ncnn: a directory with the two files that ncnn loads, converted by pnnx; the blobs are in0 and out0, out1, ….

ncnn up to 1.0.20241226 computes v1's softmax wrongly, without an error; from 1.0.20250428 on it is right.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._format import Format, metadata_file
from ._quietly import run_quietly

if TYPE_CHECKING:
    from ._network import Network


def _write(network: "Network", path: Path, *, half: bool) -> None:
    import pnnx
    import torch
    from torch import nn

    images = network.images()
    for module in network.optimized.modules():
        if isinstance(module, nn.GroupNorm) and module.weight is None:  # pnnx knows none without
            module.weight = nn.Parameter(torch.ones(module.num_channels))
            module.bias = nn.Parameter(torch.zeros(module.num_channels))
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of torch about its own tracer
            torch.jit.trace(network.optimized, images, check_trace=False).save(f"{folder}/model.pt")  # type: ignore[no-untyped-call]
        sizes = ",".join(map(str, images.shape))
        run_quietly([pnnx.EXEC_PATH, "model.pt", f"inputshape=[{sizes}]", f"fp16={int(half)}"], "ncnn", Path(folder))
        # ncnn has no batches, and does not tell one from a first axis of one.
        network.metadata["output_shapes"] = [list(output.shape) for output in network.outputs(images)]
        path.mkdir()
        for name in ("model.ncnn.param", "model.ncnn.bin"):
            file = Path(folder, name)
            if not file.is_file():
                raise RuntimeError("could not write ncnn: pnnx has made no file of this network")
            (path / name).write_bytes(file.read_bytes())


def _open(path: Path, threads: int) -> Callable[[Any], list[Any]]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(os.fspath(path / "model.ncnn.param")) or net.load_model(os.fspath(path / "model.ncnn.bin")):
        raise ValueError(f"ncnn cannot load {path}: expected the files model.ncnn.param and model.ncnn.bin in it")
    names = sorted(net.output_names(), key=lambda name: int(name.removeprefix("out")))
    shapes = json.loads(metadata_file(path).read_text(encoding="utf-8"))["output_shapes"]

    def run(images: Any) -> list[Any]:
        outputs = []
        image = np.ascontiguousarray(images[0])  # ncnn.Mat does not keep it alive
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(image))
            for name, shape in zip(names, shapes, strict=True):
                code, output = extractor.extract(name)
                if code:
                    raise RuntimeError(f"ncnn could not compute {name} of {path}: code {code}")
                outputs.append(np.array(output).reshape(shape))
        return outputs

    return run


FORMAT = Format(
    "ncnn",
    "ncnn",
    "_ncnn",
    ("pnnx",),
    _write,
    _open,
    runtime="ncnn",
    takes={"half": False, "softmax": False},
    is_folder=True,
)

"""LiteRT, formerly TensorFlow Lite: a ``.tflite`` file, converted by litert-torch.

With eight bits all of a classifier or backbone is in integers, input and output too: small processors compute nothing
else. Its interpreter says by which scale and zero they stand for numbers; pictures are their pixels.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._format import Format
from ._quietly import call_quietly

if TYPE_CHECKING:
    from ._network import Network


def _write(network: "Network", path: Path, *, half: bool, calibration: Path | None) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        program, images = Path(folder, "model.pt2"), Path(folder, "images.npy")
        if calibration is not None:
            np.save(images, np.stack([image.float().numpy() for image in network.calibrate(calibration)]))
        example = network.images() if calibration is None else network.images().float()
        traced = network.trace(images=example, decompositions={torch.ops.aten.softmax.int: _softmax})
        torch.export.save(traced, program)
        precision = "half" if half else "pictures" if network.takes_pictures else "numbers"
        call_quietly(_convert, program, path, precision, images, title="LiteRT")


def _softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    """Compute the softmax over the last axis of a matrix: litert-torch makes one operator of that only."""
    import torch

    if dtype is not None:
        return NotImplemented
    x = x.movedim(dim, -1)
    flat = x.reshape(-1, x.shape[-1])
    out = torch.ones_like(flat) if flat.shape[1] == 1 else torch._softmax(flat, 1, False)  # type: ignore[attr-defined]
    return out.reshape(x.shape).movedim(-1, dim)


def _convert(program: str, out: str, precision: str, images: str) -> None:
    """Convert a traced program, in a process of its own."""
    import litert_torch
    import torch
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    traced = torch.export.load(program)
    assert traced.example_inputs is not None
    module = traced.module()
    module.training = False
    litert_torch.convert(module, traced.example_inputs[0]).export(out)
    tool, calibrated = quantizer.Quantizer(out), None
    if precision == "half":
        weights = {"num_bits": 16, "dtype": "FLOAT"}
        half = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
        tool.load_quantization_recipe(
            [{"regex": ".*", "operation": "*", "op_config": half, "algorithm_key": "float_casting"}]
        )
    elif os.path.exists(images):
        rules = recipe.static_wi8_ai8()
        if precision == "pictures":
            rules += recipe.static_wi8_ai8()
            rules[-1]["operation"] = "INPUT"
            rules[-1]["op_config"]["activation_tensor_config"] |= {"symmetric": False, "dtype": "UINT"}
        tool.load_quantization_recipe(rules)
        # The quantizer's own calibration averages the ranges of images: what is larger than usual would be cut off.
        ranges = calibrator.Calibrator(out, qsv_update_func=qsv_utils.min_max_update)
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges.calibrate({"serving_default": [{"args_0": image} for image in np.load(images)]}, manager)
        calibrated = ranges.get_model_qsvs()
        if precision == "pictures":
            name = next(name for name in calibrated if "args_0" in name)
            calibrated[name] = {
                key: np.full_like(calibrated[name][key], end) for key, end in (("min", 0), ("max", 255))
            }
    else:
        return
    Path(out).write_bytes(tool.quantize(calibrated, enable_progress_report=False).quantized_model)


def _open(path: Path, threads: int) -> Callable[[Any], list[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path), num_threads=threads)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    targets = interpreter.get_output_details()

    def run(images: Any) -> list[Any]:
        kind, (scale, zero) = source["dtype"], source["quantization"]
        if scale and images.dtype != kind:
            limits = np.iinfo(kind)
            images = np.clip(np.round(images / scale + zero), limits.min, limits.max).astype(kind)
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        return [_number(interpreter.get_tensor(target["index"]), *target["quantization"]) for target in targets]

    return run


def _number(values: Any, scale: float, zero: int) -> Any:
    """Dequantize integers."""
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale) if scale else np.array(values)


FORMAT = Format(
    "litert",
    "LiteRT",
    ".tflite",
    ("litert_torch",),
    _write,
    _open,
    runtime="ai_edge_litert",
    takes={"half": False, "softmax": False, "image_input": False, "calibration": None},
)

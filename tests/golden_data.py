"""Golden numbers of the reference implementations, and the recipe for the weights that they were made with.

``golden/*.json`` were recorded by running the original code (apple/ml-cvnets at commits d38a116 and 84d992f, and
micronDLA/MobileViTv3 over them) in float32 on the CPU. The weights are not stored: they follow from the names of the
parameters.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
CLASSIFIERS = sorted(path.stem for path in FOLDER.glob("mobilevit*.json"))
DILATED = sorted(path.stem for path in FOLDER.glob("dilated_*.json"))


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def make_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The weights that belong to parameters of these names and shapes (the reference's names)."""
    return {key: torch.from_numpy(np.asarray(_values(key, shape))) for key, shape in shapes.items()}


def _values(key: str, shape: list[int]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    z = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape).astype(np.float32)
    if key.endswith(("running_mean", "bias")):
        return np.float32(0.1) * z
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.5) * np.abs(z)
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * z
    return z * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))


def reference_weights(arch: str) -> dict[str, Tensor]:
    """A classifier's checkpoint in the reference's names."""
    return make_weights(load(f"{arch}_256x256")["state_dict"])


def make_images(shape: list[int]) -> Tensor:
    """The images that the numbers were recorded on."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(0)).random(shape, dtype=np.float32))


def error(actual: Tensor, golden: dict[str, Any]) -> float:
    """Largest difference at the recorded places, over the standard deviation of the whole tensor."""
    assert list(actual.shape) == golden["shape"]
    probes = actual.detach().contiguous().flatten()[golden["probe_flat_idx"]].double()
    return float((probes - torch.tensor(golden["probe"], dtype=torch.float64)).abs().max() / golden["std"])

"""Reading checkpoint files that nobody vouches for."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Where training scripts keep the weights, best first: exponential moving averages before raw weights, as in timm.
_CONTAINERS = ("state_dict_ema", "ema_state_dict", "model_ema", "state_dict", "model_state_dict", "model")
# Left in the names by DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights from a checkpoint file, without running anything in it.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote: a flat state dict, or a training checkpoint that
            holds one (of timm, CVNets or mmengine). Of several, averaged weights are taken before raw ones.

    Returns:
        The flat state dict on the CPU, without the prefixes of wrappers such as DistributedDataParallel.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, needs code to be run, or holds no state dict.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "state_dict": {"module.weight": torch.ones(2)}}, f"{folder}/last.pth")
        ...     read_checkpoint(f"{folder}/last.pth")
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    return state_dict_of(_read(path), str(path))


def state_dict_of(content: Any, name: str = "the checkpoint") -> dict[str, Tensor]:
    """Find the flat state dict in what a checkpoint holds.

    Raises:
        ValueError: If there is none.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}, expected a state dict or a training checkpoint")
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping) and content[key]:
            return state_dict_of(content[key], name)
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        raise ValueError(
            f"{name} holds no state dict: expected names with tensors, or one of the entries "
            f"{', '.join(_CONTAINERS)}; got {', '.join(map(str, strangers[:6])) or 'nothing'}"
        )
    return {_without_prefixes(str(key)): value for key, value in content.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # timm's own training checkpoints carry their arguments as a Namespace, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, no checkpoint, or holds objects that would have to run code when read, which is never "
            f"done; save its plain state dict with torch.save or as safetensors ({_first_line(error)})"
        ) from error
    except Exception as error:  # damaged bytes make the readers raise anything at all, IndexError and struct.error too
        raise ValueError(
            f"{path} is damaged or no checkpoint; download or copy it again ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _without_prefixes(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key

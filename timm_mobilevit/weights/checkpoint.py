"""Reading checkpoint files that nobody vouches for."""

import argparse
import copy
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Where training scripts keep the weights, best first: exponential moving averages before raw weights, as in timm.
_CONTAINERS = ("state_dict_ema", "ema_state_dict", "model_ema", "state_dict", "model_state_dict", "model")
# Left in the names by DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_MAX_NAME = 300  # characters; ours have 50 at most
_MAX_DEPTH = 8  # of containers in containers; a file can nest them without end, or in a circle

# What training changes ends so in every layout; what is named otherwise (counters, masks) may be of any type and value.
_LEARNED = ("weight", "bias", "running_mean", "running_var")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights from a checkpoint file, without running anything in it.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote: a flat state dict, or a training checkpoint that
            holds one (of timm, CVNets or mmengine). Of several, averaged weights are taken before raw ones.

    Returns:
        The flat state dict on the CPU, without the prefixes of wrappers such as DistributedDataParallel.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened.
        ValueError: If the file is damaged, needs code to be run, or holds no state dict that a model could use.

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
    state_dict = state_dict_of(_read(path), str(path))
    storages = [tensor.untyped_storage() for tensor in state_dict.values()]
    size = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if size > path.stat().st_size:  # the old format lets a tensor claim any size, and fills it with what lay in memory
        raise ValueError(f"{path} is damaged: its tensors claim {size} bytes, more than the file has")
    # Readers map the file: later, somebody may change it under our feet. Tensors that share memory go on doing so.
    return copy.deepcopy(state_dict)


def state_dict_of(content: Any, name: str = "the checkpoint") -> dict[str, Tensor]:
    """Find the flat state dict in what a checkpoint holds.

    Raises:
        ValueError: If there is none, or a model could not use it: its weights are not finite, for one.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}, expected a state dict or a training checkpoint")
    for _ in range(_MAX_DEPTH):
        inner = [content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping) and content[key]]
        if not inner:
            break
        content = inner[0]
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        raise ValueError(
            f"{name} holds no state dict: expected names with tensors, or one of the entries "
            f"{', '.join(_CONTAINERS)}; got {_some(map(str, strangers)) or 'nothing'}"
        )
    if complaints := [f"{key} {fault}" for key, tensor in content.items() if (fault := _fault(str(key), tensor))]:
        raise ValueError(
            f"{name} holds weights that no model can use: {_some(complaints)}. The training that wrote it diverged, or "
            "the file is damaged: take an earlier checkpoint, or download or copy it again"
        )
    state_dict = {_without_prefixes(str(key)): value for key, value in content.items()}
    if len(state_dict) < len(content):
        raise ValueError(
            f"{name} holds several tensors of the same name once the prefixes {' and '.join(_PREFIXES)} are gone; "
            "save the state dict of one model"
        )
    return state_dict


def _read(path: Path) -> Any:
    with path.open("rb") as file:  # what the file system says about it is no fault of the file
        is_zip = file.read(4) == b"PK\3\4"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_zip:
            _check_zip(path)
        # timm's own training checkpoints carry their arguments as a Namespace, which is harmless. Allowed for good: a
        # context manager would take it from another thread that is still reading.
        torch.serialization.add_safe_globals([argparse.Namespace])
        # Mapped, no tensor can reach beyond the file, as it can in memory with torch 2.6, whatever it claims; and
        # of a training checkpoint only the part that is used is ever read.
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, no checkpoint, or holds objects that would have to run code when read, which is never "
            f"done; save its plain state dict with torch.save or as safetensors ({_first_line(error)})"
        ) from error
    except Exception as error:  # damaged bytes make the readers raise anything at all, IndexError and struct.error too
        raise ValueError(
            f"{path} is damaged or no checkpoint; download or copy it again ({_first_line(error)})"
        ) from error


def _check_zip(path: Path) -> None:
    """Do what ``torch.load`` leaves out: compare the checksums, and refuse what would grow when it is unpacked.

    Raises:
        ValueError: If a checksum is wrong or the parts of the file are larger than the file.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if compressed or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are compressed or overlap, which torch.save never does")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong or was never computed")


def _fault(key: str, tensor: Tensor) -> str:
    """What is wrong with a tensor; empty if nothing is."""
    if len(key) > _MAX_NAME or not key.isprintable():
        return "cannot be the name of a parameter"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "is sparse, quantised or without data"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "claims more values than are there"
    if not key.endswith(_LEARNED):
        return ""
    if tensor.dtype not in _FLOATS:
        return f"has the data type {tensor.dtype}, expected a floating-point one of 16 to 64 bits"
    if not tensor.numel():
        return "is empty"
    return "" if tensor.isfinite().all() else "has values that are not finite"


def _some(texts: Iterable[str], most: int = 6) -> str:
    """The first few, cut to a readable length and free of control characters: a file may hold any name."""
    texts = list(texts)
    more = len(texts) - most
    return ", ".join(ascii(_short(text))[1:-1] for text in texts[:most]) + (f" and {more} more" if more > 0 else "")


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _without_prefixes(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key

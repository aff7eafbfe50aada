"""A loader for MMEngine's checkpoints that MMEngine itself cannot read.

A checkpoint of its runner holds the history of the logs, as objects. From PyTorch 2.6 on ``torch.load`` refuses such
files by default, and MMEngine up to 0.10.7 relies on that default: it can then neither resume nor test what it has
trained. To allow the classes by name is no remedy: the file also names ``getattr``, with which it could reach any
function.

So importing ``timm_mobilevit.mm`` registers a loader for local files. It calls the previous loader; if that fails,
it reads the file without running anything in it and builds the objects of ``_BUILDERS`` from plain values.
A file with objects of any other kind fails as before. Newer releases and forks of MMEngine read these files themselves:
nothing changes there.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..weights.torch_file import Inert, load_torch_file

_Loader = Callable[..., Any]
_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype)


def reading_without_running(loader: _Loader) -> _Loader:
    """Return a loader that safely reads files which another one refuses.

    Args:
        loader: Takes the name of a file and a device, as MMEngine's loaders do.

    Returns:
        A loader with the same arguments, results and errors. Where ``loader`` raises ``UnpicklingError``, and the file
        holds nothing but tensors, plain values, numpy's arrays and scalars, and MMEngine's logs, it returns these;
        tensors on the device if one is named, otherwise on the CPU.
    """

    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        try:
            return loader(filename, map_location, *args, **kwargs)
        except UnpicklingError as refused:
            try:
                return _Builder(map_location)(load_torch_file(Path(filename).expanduser()))
            except Exception:  # damaged files make the reader raise anything at all
                raise refused from None

    return load


class _Builder:
    """Copy the content of a file, with the objects that are known.

    Args:
        device: Where tensors go; anything but a device or its name leaves them on the CPU.
    """

    def __init__(self, device: Any) -> None:
        self.device = device if isinstance(device, (str, torch.device)) else "cpu"
        self.built: dict[int, Any] = {}  # the same object for the same object
        self.storages: dict[int, Any] = {}  # shared memory stays shared

    def __call__(self, value: Any) -> Any:
        """Copy a value.

        Raises:
            Exception: If it or anything in it cannot be built.
        """
        if isinstance(value, _PLAIN):
            return value
        if id(value) not in self.built:
            self.built[id(value)] = self._build(value)
        return self.built[id(value)]

    def _build(self, value: Any) -> Any:
        if type(value) in (dict, OrderedDict):
            return type(value)((self(key), self(item)) for key, item in value.items())
        if type(value) in (list, tuple, set):
            return type(value)(self(item) for item in value)
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor claims more values than are there")
            return copy.deepcopy(value, self.storages).to(self.device)  # the file is mapped, and may be overwritten
        if isinstance(value, Inert):
            return _BUILDERS[f"{type(value).__module__}.{type(value).__qualname__}"](self, value)
        raise TypeError(f"{type(value).__name__} is no plain value")


def _history_buffer(build: _Builder, inert: Inert) -> HistoryBuffer:
    # Methods come from the class, not from the file, where they would need getattr.
    state = inert.state
    return HistoryBuffer(build(state["_log_history"]), build(state["_count_history"]), state["max_length"])


def _array(build: _Builder, inert: Inert) -> Any:
    _, shape, dtype, by_columns, data = inert.state
    array: Any = np.ndarray(shape, build(dtype), build(data), order="F" if by_columns else "C")
    return array.copy("K")  # which can be written to


def _scalar(build: _Builder, inert: Inert) -> Any:
    dtype, data = inert.arguments
    return np.ndarray((), build(dtype), build(data))[()]


def _dtype(_: _Builder, inert: Inert) -> Any:
    dtype = np.dtype(inert.arguments[0]).newbyteorder(inert.state[1])
    if dtype.kind not in "biufc":
        raise TypeError(f"{dtype} is no data type of numbers")
    return dtype


def _bytes(_: _Builder, inert: Inert) -> bytes:
    text, encoding = inert.arguments or ("", "latin1")
    if encoding != "latin1":
        raise ValueError(f"bytes are written as latin1, not {encoding}")
    return bytes(text, "latin1")


_BUILDERS: dict[str, Callable[[_Builder, Inert], Any]] = {
    "mmengine.logging.history_buffer.HistoryBuffer": _history_buffer,
    "numpy.core.multiarray._reconstruct": _array,  # before numpy 2
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _dtype,
    "_codecs.encode": _bytes,  # torch.save's protocol has no bytes
    "__builtin__.bytes": _bytes,  # no bytes at all
}

CheckpointLoader.register_scheme("", reading_without_running(CheckpointLoader._schemes[""]), force=True)

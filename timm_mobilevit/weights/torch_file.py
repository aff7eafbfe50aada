"""Reading what ``torch.save`` wrote, without running anything that the file asks for.

A file of ``torch.save`` is a pickle and the bytes of its tensors. A pickle is a program: it names functions and classes
by module and name, and calls them. Here a name gives one of the few entries of ``_TABLE``, which build ordered
dictionaries and tensors; any other becomes a class of inert objects, which take any call and do nothing. Nothing is
imported, and no function of the file's choosing is called. So files of trainings can be read whose logs and arguments
hold objects of any library, installed or not. Names in Python's standard library that are no plain data, such as
``os.system``, are refused nevertheless: a file that names them was not made to save weights.

``torch.load`` is not used, in no version: ``weights_only=True`` refuses those files, and before PyTorch 2.10 a crafted
file could corrupt memory through it (CVE-2026-24747). Its faults do not reach here: the interpreter of the pickle is
Python's own in its form without C code, tensors are bounds-checked views of the mapped file, and only dictionaries and
lists take items.
"""

import io
import mmap
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

# What a pickle may name in the standard library: plain data, inert here. It may name any other library's objects.
_PLAIN = {
    "_codecs", "argparse", "array", "builtins", "collections", "copyreg", "datetime", "decimal", "enum",
    "fractions", "functools", "logging", "numbers", "operator", "pathlib", "random", "re", "types", "typing", "uuid",
    "zoneinfo",
}  # fmt: skip
_RUNNING = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "input", "open", "setattr"}

_STORAGES = {
    "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
    "CharStorage": torch.int8, "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "IntStorage": torch.int32, "LongStorage": torch.int64, "ShortStorage": torch.int16, "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES = (
    "bfloat16", "bool", "complex128", "complex64", "float16", "float32", "float64", "float8_e4m3fn",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int16", "int32", "int64", "int8", "uint16", "uint32",
    "uint64", "uint8",
)  # fmt: skip

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6
_PROTOCOL = 1001


class RefusedError(ValueError):
    """A file names a function that could only serve to run code."""


class Inert:
    """Placeholder of an object that this module does not build: it can be named and filled, and does nothing.

    Attributes:
        arguments: Arguments that the file gives to the constructor.
        state: State that the file restores, the result of ``__getstate__``; None if there is none. Items are not kept.
    """

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Take any arguments."""
        inert = object.__new__(cls)
        inert.arguments = args
        return inert

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        """Return itself."""
        return self


class _Storage(NamedTuple):
    """Bytes and the data type that a file gave them."""

    data: UntypedStorage
    dtype: torch.dtype


def load_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save``; tensors are on the CPU, mapped from the file if the format allows it.

    Args:
        path: The file.

    Returns:
        What was saved: tensors, numbers, strings and containers of them. Parameters come as plain tensors; any other
        object as an instance of :class:`Inert`, whose class has the object's name.

    Raises:
        RefusedError: If the file asks for functions that run code.
        OSError: If the file cannot be opened.
        Exception: Of any type, if the file is damaged or was not written by ``torch.save``.

    Example:
        >>> import argparse, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(2), "args": argparse.Namespace(lr=0.1)}, f"{folder}/last.pth")
        ...     content = load_torch_file(Path(folder, "last.pth"))
        >>> content["weight"], type(content["args"])
        (tensor([1., 1.]), <class 'argparse.Namespace'>)
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
        file.seek(0)
        return _load_zip(file) if is_zip else _load_legacy(file)


def _load_zip(file: IO[bytes]) -> Any:
    """Read the format of PyTorch 1.6 and newer: a zip archive with the pickle and one part per storage."""
    # Mapped, of a training checkpoint only the part that is used is ever read. Private: writes do not reach the file.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: part for part in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in parts if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("it is a zip archive that torch.save did not write: unpack it, and name the file in it")
        if f"{roots[0]}constants.pkl" in parts:
            raise ValueError("it is TorchScript, which is code: save the model's state dict")
        compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts.values())
        if compressed or sum(part.file_size for part in archive.infolist()) > len(mapped):
            raise ValueError("its parts are compressed or overlap, which torch.save never does")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong or was never computed")
        root = roots[0]
        if f"{root}byteorder" in parts and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            raise ValueError("it was written on a machine of another byte order")
        pickled = archive.read(f"{root}data.pkl")

    storages: dict[str, UntypedStorage] = {}

    def storage(key: str, size: int) -> UntypedStorage:
        part = parts[f"{root}data/{key}"]
        count = part.file_size
        if size > count:
            raise ValueError(f"a storage claims {size} bytes, its part has {count}")
        if key not in storages:
            # The data begin behind the part's own header, its name and its padding, whose lengths stand at 26 and 28.
            start = part.header_offset + 30 + sum(struct.unpack_from("<HH", mapped, part.header_offset + 26))
            # frombuffer refuses to read nothing.
            data = torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=start) if count else torch.empty(0)
            storages[key] = data.untyped_storage()
        return storages[key]

    return _Unpickler(io.BytesIO(pickled), storage).load()


def _load_legacy(file: IO[bytes]) -> Any:
    """Read the format from before PyTorch 1.6: pickles one after the other, then the bytes of all storages."""
    storages: dict[str, UntypedStorage] = {}
    left = file.seek(0, io.SEEK_END)
    file.seek(0)

    def storage(key: str, size: int) -> UntypedStorage:
        nonlocal left
        if key not in storages:
            left -= size
            if left < 0:
                raise ValueError("its storages claim more bytes than the file has")
            storages[key] = UntypedStorage(size)  # type: ignore[no-untyped-call]
        return storages[key]

    magic_number, protocol, system = (_Unpickler(file, storage).load() for _ in range(3))
    if magic_number != _MAGIC_NUMBER or protocol != _PROTOCOL:
        raise ValueError("it does not begin as files of torch.save do")
    if system.get("little_endian", True) != (sys.byteorder == "little"):
        raise ValueError("it was written on a machine of another byte order")
    content = _Unpickler(file, storage).load()
    keys = _Unpickler(file, storage).load()
    if set(keys) != storages.keys():  # or some would hold what was in memory
        raise ValueError("the storages that it lists are not those of its tensors, or of an unknown data type")
    for key in keys:
        file.read(8)  # the number of values, which the pickle has told already
        content_of = torch.empty(0, dtype=torch.uint8).set_(storages[key]).numpy()
        if file.readinto(content_of) < len(content_of):  # type: ignore[attr-defined]
            raise ValueError("it ends early")
    return content


_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Python's unpickler in its form without C code: the other one trusts sizes and indices that a file gives.

    Args:
        file: Where to read the pickle.
        storage: Gives the bytes of a storage, by its key and the size in bytes that the pickle claims.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[str, int], UntypedStorage]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for: an entry of the table, or a class of inert objects."""
        known = _TABLE.get((module, name))
        if known is not None:
            return known
        library = module.partition(".")[0]
        plain = library in _PLAIN or library not in sys.stdlib_module_names
        if not plain or (library in ("builtins", "__builtin__") and name in _RUNNING):
            raise RefusedError(f"it names {module}.{name}")
        return type(name, (Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        """Find a storage."""
        kind, *values = pid
        if kind == "module":  # the old format keeps the source of modules beside them
            return values[0]
        if kind != "storage":
            raise ValueError(f"it refers to a {kind!r}")
        dtype, key, _, numel, *view = values
        if not isinstance(dtype, torch.dtype) or any(part is not None for part in view):
            return Inert()
        if type(key) is not str or type(numel) is not int or numel < 0:
            raise ValueError("a storage has no key or size")
        return _Storage(self.storage(key, numel * dtype.itemsize), dtype)

    def _fill(self, kind: type, items: Iterable[Any]) -> None:
        """Put items into the last object, which must be a list, dictionary or set; inert objects keep none."""
        top = self.stack[-1]
        if not isinstance(top, (kind, Inert)):
            raise ValueError(f"it puts items into a {type(top).__name__}")
        if not isinstance(top, Inert):
            getattr(top, "extend" if kind is list else "update")(items)

    def load_setitem(self) -> None:
        """Put an item into a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(dict, [(key, value)])

    def load_setitems(self) -> None:
        """Put items into a dictionary."""
        items = self.pop_mark()
        self._fill(dict, zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        """Keep the state of an inert object; the objects that are built here have none."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def load_bytearray8(self) -> None:
        """Read a mutable string; Python's own reserves whatever size the file claims."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(min(size, sys.maxsize))))

    dispatch = dict(_PythonUnpickler.dispatch) | {
        pickle.APPEND[0]: lambda self: self._fill(list, [self.stack.pop()]),
        pickle.APPENDS[0]: lambda self: self._fill(list, self.pop_mark()),
        pickle.ADDITEMS[0]: lambda self: self._fill(set, self.pop_mark()),
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
    for _opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):  # objects that the process registered: no names to check
        del dispatch[_opcode[0]]


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None, metadata: Any = None
) -> Any:
    """Return a view of a storage, without gradients; inert if ``metadata`` marks a conjugate or negative view."""
    if not isinstance(storage, _Storage) or metadata:
        return Inert()
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride):
        raise ValueError("a tensor has no shape")
    last = -1 if 0 in size else offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (last + 1) * storage.dtype.itemsize > storage.data.nbytes():
        raise ValueError("a tensor claims more values than its storage has")
    return torch.empty(0, dtype=storage.dtype).set_(storage.data, offset if last >= 0 else 0, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    """Return a view of bytes, for data types that have no storage of their own."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        return Inert()
    return _tensor(_Storage(storage.data, dtype), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data if isinstance(data, Tensor) else Inert()


# Everything that a pickle can call or name with effect.
_TABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{(f"torch{part}", name): dtype for name, dtype in _STORAGES.items() for part in ("", ".storage", ".cuda")},
    **{("torch", name): getattr(torch, name) for name in _DTYPES if hasattr(torch, name)},
}  # fmt: skip

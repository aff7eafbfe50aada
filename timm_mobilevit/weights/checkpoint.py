"""Reading untrusted checkpoint files."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..convert.matching import some
from .file_kinds import check_kind
from .torch_file import Inert, RefusedError, load_torch_file


@dataclass(frozen=True)
class _Trainer:
    """How one trainer writes its checkpoints.

    Attributes:
        name: The trainer.
        marks: Entries that its files have, all of them; a dot leads into an entry.
        entries: Entries with weights, first the one that the trainer itself evaluates.
        average: Entry whose presence says that the weights evaluated are an average over the training. It counts the
            updates, where anything does.
        raw: Entry with the weights that were averaged.
    """

    name: str
    marks: tuple[str, ...]
    entries: tuple[str, ...]
    average: str
    raw: str


_TRAINERS = (
    # EMAHook swaps both entries when it saves: the raw weights are in ema_state_dict.
    _Trainer("MMEngine", ("meta.mmengine_version",), ("state_dict",), "ema_state_dict", "ema_state_dict"),
    # WeightAveraging puts the average into state_dict, and the raw weights into current_model_state.
    _Trainer("Lightning", ("pytorch-lightning_version",), ("state_dict",), "averaging_state", "current_model_state"),
    _Trainer(
        "timm", ("state_dict", "state_dict_ema"), ("state_dict_ema", "state_dict"), "state_dict_ema", "state_dict"
    ),
    _Trainer("timm", ("arch", "epoch", "version", "state_dict"), ("state_dict",), "state_dict_ema", "state_dict"),
    _Trainer(
        "CVNets",
        ("iterations", "model_state_dict"),
        ("ema_state_dict", "model_state_dict"),
        "ema_state_dict",
        "model_state_dict",
    ),
)
# Where other trainers keep weights. Of two entries, only the user can say which is meant.
_CONTAINERS = (
    "state_dict", "model_state_dict", "model", "network", "net", "params", "weights", "student", "teacher",
    "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema",
)  # fmt: skip
# Left in the names by DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_COUNTERS = ("n_averaged", "steps")  # of torch's and mmengine's averaged models, beside the names
_MAX_NAME = 300  # characters; ours have 50 at most
_MAX_DEPTH = 8  # of containers in containers; a file can nest them without end, or in a circle

# Parameters and statistics end so in every layout; other entries (counters, masks) may be of any type and value.
_LEARNED = ("weight", "bias", "running_mean", "running_var")
_LARGEST = torch.finfo(torch.float32).max  # what models compute in
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# Entries in which trainers keep metadata of the training.
_METADATA = {
    "epoch": ("epoch", "meta.epoch"),
    "step": ("global_step", "meta.iter", "iterations"),
    "metric": ("metric", "best_metric"),
    "decay": ("args.model_ema_decay",),
}


@dataclass(frozen=True)
class Entry:
    """One of the entries of a checkpoint file that hold weights.

    Attributes:
        name: Its name, with a dot for each level; empty if the file is the state dict.
        averaged: Whether its weights are an average over the training; None where that is not known.
        updates: How often the average was updated, where the file counts that.
        batches: Training batches that the batch norms have counted, where ``updates`` does not tell; those of the
            pretraining may be among them.
    """

    name: str
    averaged: bool | None = None
    updates: float | None = None
    batches: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        state_dict: The flat state dict, on the CPU, without the prefixes of wrappers such as DistributedDataParallel.
        trainer: The trainer that wrote the file, if its entries show it; else empty.
        entries: The entries that weights can be taken from, first the one that the state dict was taken from.
        metadata: Of the training, as the file says: ``epoch``, ``step``, ``metric``, and the ``decay`` of an average.
        options: Those that timm's ``train.py`` was started with; nothing has checked their values.
    """

    state_dict: dict[str, Tensor]
    trainer: str
    entries: tuple[Entry, ...]
    metadata: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choice(self) -> str:
        """Say which entry was taken and how to get another; empty if there is no other.

        Example:
            >>> average, raw = Entry("state_dict_ema", averaged=True), Entry("state_dict", averaged=False)
            >>> Checkpoint({}, "timm", (average, raw)).choice
            'the averaged weights are taken, from state_dict_ema; --entry state_dict takes the raw ones'
        """
        kinds = {True: "averaged ", False: "raw ", None: ""}
        taken, *others = self.entries
        rest = " and ".join(f"--entry {other.name} takes the {kinds[other.averaged]}ones" for other in others)
        return f"the {kinds[taken.averaged]}weights are taken, from {taken.name}; {rest}" if others else ""


def read_checkpoint(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the weights from a checkpoint file, without running anything in it.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote: a flat state dict, or a training checkpoint that
            holds one. From files of timm, MMEngine, CVNets and Lightning it takes the weights that the trainer
            itself evaluates: the averaged ones, if there are any. The file may also hold arguments, logs and states
            of optimizers, objects of any library; none of them is run, imported or kept.
        entry: The entry to take, such as ``"model_ema"`` or ``"callbacks.EMA.weights"``, where several hold weights and
            the trainer is not known. An empty string says that the file is the state dict.

    Returns:
        The flat state dict on the CPU, without the prefixes of wrappers such as DistributedDataParallel.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened.
        ValueError: If the file is damaged, asks for code to be run, holds no state dict that a model could use, or
            holds several and ``entry`` does not choose one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "state_dict": {"module.weight": torch.ones(2)}}, f"{folder}/last.pth")
        ...     read_checkpoint(f"{folder}/last.pth")
        {'weight': tensor([1., 1.])}
    """
    return open_checkpoint(path, entry).state_dict


def open_checkpoint(path: str | Path, entry: str | None = None) -> Checkpoint:
    """Read a checkpoint file as :func:`read_checkpoint` does, with its trainer, its entries and its metadata."""
    path = Path(path)
    check_kind(path)
    checkpoint = checkpoint_of(_read(path), str(path), entry)
    storages = [tensor.untyped_storage() for tensor in checkpoint.state_dict.values()]
    size = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if size > path.stat().st_size:  # tensors of safetensors and torch.save never overlap in part
        raise ValueError(f"{path} is damaged: its tensors claim {size} bytes, more than the file has")
    # Readers map the file: another process may change it later. Tensors that share memory go on doing so.
    return replace(checkpoint, state_dict=copy.deepcopy(checkpoint.state_dict))


def checkpoint_of(content: Any, name: str = "the checkpoint", entry: str | None = None) -> Checkpoint:
    """Find the flat state dict in what a checkpoint holds, and the entry that it was in.

    Raises:
        ValueError: As :func:`read_checkpoint`.
    """
    _check_mapping(content, name)
    trainer = next((t for t in _TRAINERS if all(_at(content, mark) is not None for mark in t.marks)), None)
    averages = trainer is not None and _at(content, trainer.average) is not None
    taken = _find(content, trainer, name) if entry is None else entry
    weights = _at(content, taken)
    if weights is None:
        raise ValueError(f"{name} has no entry {entry}; it has {some(map(str, content))}")
    _check_mapping(weights, f"the entry {taken} of {name}")
    state_dict = _checked(weights, name)
    names = [taken]
    if trainer and averages:
        names += [trainer.entries[0], trainer.raw]
    elif not trainer and taken:
        # Under any name: "swa_model" or "net_ema" may hold what the user means.
        names += [key for key in map(str, content) if _tensors_in(_at(content, key)) >= len(state_dict)]
        names += _CONTAINERS
    names = [key for key in dict.fromkeys(names) if _holds(Tensor, _at(content, key))]
    entries = tuple(_entry(content, key, trainer, averages) for key in names)
    places = {key: place for key, place in _METADATA.items() if key != "decay" or averages}
    metadata = {key: number for key, place in places.items() if (number := _number(content, place)) is not None}
    options = _at(content, "args") if trainer and trainer.name == "timm" else None
    options = options.state if isinstance(options, Inert) else options
    options = options if isinstance(options, Mapping) else {}
    return Checkpoint(state_dict, trainer.name if trainer else "", entries, metadata, options)


def _find(content: Mapping[Any, Any], trainer: _Trainer | None, name: str) -> str:
    """Return the entry with the weights that the trainer evaluates, or the only ones; empty for the whole file."""
    path: list[str] = []
    while len(path) < _MAX_DEPTH:
        known = trainer.entries if trainer and not path else ()
        inside = _at(content, ".".join(path))
        inner = [key for key in known or _CONTAINERS if _holds((Tensor, Mapping), inside.get(key))]
        if len(inner) > 1 and not known:
            raise ValueError(
                f"{name} holds weights in {' and '.join(inner)}, and nothing tells which are meant; say so with "
                f"entry={inner[0]!r} (--entry {inner[0]} on the command line)"
            )
        if not inner:
            break
        path.append(inner[0])
    return ".".join(path)


def _holds(kinds: type | tuple[type, ...], value: Any) -> bool:
    """Return whether a value is a mapping to some tensors, say; hyperparameters and names of models are none."""
    return isinstance(value, Mapping) and any(isinstance(part, kinds) for part in value.values())


def _tensors_in(value: Any) -> int:
    return sum(isinstance(part, Tensor) for part in value.values()) if isinstance(value, Mapping) else 0


def _entry(content: Mapping[Any, Any], name: str, trainer: _Trainer | None, averages: bool) -> Entry:
    """Return what is known of an entry with weights."""
    averaged, updates = None, None
    if trainer and name in (trainer.entries[0], trainer.raw):
        averaged = averages and name == trainer.entries[0]
        updates = _number(_at(content, trainer.average), _COUNTERS) if averaged else None
    counts = [_plain(value) for key, value in _at(content, name).items() if str(key).endswith("num_batches_tracked")]
    counted = [count for count in counts if count is not None and updates is None]  # averages average counters too
    return Entry(name, averaged, updates, max(counted, default=None))


def _number(content: Any, places: Iterable[str]) -> float | None:
    """Return the first finite number at one of some places."""
    numbers = (_plain(_at(content, place)) for place in places)
    return next((number for number in numbers if number is not None), None)


def _plain(value: Any) -> float | None:
    """Return a finite number, or a tensor of one; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype in (*_FLOATS, torch.int32, torch.int64):
        value = value.item()
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
    return value if known and math.isfinite(value) else None


def _check_mapping(content: Any, name: str) -> None:
    if isinstance(content, Inert):
        raise ValueError(f"{name} holds {_object(content)}; save the model's state dict")
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}, expected a state dict or a training checkpoint")


def _object(inert: Inert) -> str:
    kind = some([f"{type(inert).__module__}.{type(inert).__qualname__}"])
    return f"an object of {kind}, which would have to run code when read"


def _at(content: Any, entry: str) -> Any:
    """Return what is at an entry, or None; a dot leads into one, and into the attributes of an object."""
    for key in entry.split(".") if entry else ():
        content = content.state if isinstance(content, Inert) else content
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _checked(content: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    """Return the state dict without the prefixes of wrappers, if a model could use it."""
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    first = next((key for key in strangers if isinstance(content[key], Inert)), "")
    if strangers or not content:
        raise ValueError(
            f"{name} holds no state dict: expected names with tensors, or one of the entries "
            f"{', '.join(_CONTAINERS)}; got {some(map(str, strangers)) or 'nothing'}"
            + (f", where {some([str(first)])} is {_object(content[first])}" if first else "")
        )
    if complaints := [f"{key} {fault}" for key, tensor in content.items() if (fault := _fault(str(key), tensor))]:
        raise ValueError(
            f"{name} holds weights that no model can use: {some(complaints)}. The training that wrote it diverged, or "
            "the file is damaged: take an earlier checkpoint, or download or copy it again"
        )
    names = {key: _without_prefixes(str(key)) for key in content if key not in _COUNTERS}
    state_dict = {name: content[key] for key, name in names.items()}
    if len(state_dict) < len(names):
        raise ValueError(
            f"{name} holds several tensors of the same name once the prefixes {' and '.join(_PREFIXES)} are gone; "
            "save the state dict of one model"
        )
    return state_dict


def _read(path: Path) -> Any:
    try:
        return load_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    except RefusedError as error:
        raise ValueError(
            f"{path} holds objects that would have to run code when read, which is never done; save its plain state "
            f"dict with torch.save or as safetensors ({_first_line(error)})"
        ) from error
    except Exception as error:  # damaged bytes make the readers raise anything at all, IndexError and struct.error too
        raise ValueError(
            f"{path} is damaged or no checkpoint; download or copy it again ({_first_line(error)})"
        ) from error


def _fault(key: str, tensor: Tensor) -> str:
    """Return what is wrong with a tensor; empty if nothing is."""
    if len(key) > _MAX_NAME or not key.isprintable():
        return "cannot be the name of a parameter"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "is sparse, quantized or without data"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "claims more values than are there"
    if not key.endswith(_LEARNED):
        return ""
    if tensor.dtype not in _FLOATS:
        return f"has the data type {tensor.dtype}, expected a floating-point one of 16 to 64 bits"
    if not tensor.numel():
        return "is empty"
    if not tensor.isfinite().all():
        return "has values that are not finite"
    if key.endswith("running_var") and (tensor < 0).any():
        return "has negative values, which no variance has"
    return "has values too large for float32" if tensor.abs().max() > _LARGEST else ""


def _first_line(error: Exception) -> str:
    text = some([str(error).strip().partition("\n")[0]])
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) or not text else text


def _without_prefixes(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key

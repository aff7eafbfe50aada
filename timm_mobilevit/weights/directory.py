"""Folders as ``convert`` and ``timm.models.save_for_hf`` write them: weights and the ``config.json`` that fits them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..variants import VARIANTS
from .loading import read_weights

CONFIG = "config.json"
# Where timm looks for the weights, and in this order; then by the ending.
_NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin")

_Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Directory:
    """A model in a folder.

    Attributes:
        arch: Its architecture.
        tag: Tag of the published weights that it holds; empty for others.
        state_dict: Its weights, in our layout.
        num_features: Channels before the classifier according to ``config.json``; None if it does not say.
    """

    arch: str
    tag: str
    state_dict: dict[str, Tensor]
    num_features: int | None = None


def read_directory(path: Path) -> Directory:
    """Read the weights of a folder, and make sure that its ``config.json`` describes them.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If it has no ``config.json`` or no weights.
        ValueError: If an entry of ``config.json`` is broken or contradicts the weights, or the weights cannot be read.
            The message names the entry or the file.
    """
    config = read_config(path)
    arch = config["architecture"].partition(".")[0]
    cfg, args = config.get("pretrained_cfg", config), config.get("model_args") or {}  # older files have cfg at the top
    file = _weights_file(path)
    tag = cfg.get("tag") or ""
    try:
        state_dict = read_weights(file, arch, tag)
    except ValueError as error:
        raise ValueError(f"the weights in {path} cannot be read as {arch}, as {CONFIG} says: {error}") from error
    classes = len(state_dict.get("head.fc.weight", ()))
    channels = state_dict["stem.conv.weight"].shape[1]
    top = "num_classes" if "num_classes" in config else "pretrained_cfg.num_classes"
    size = "model_args.in_chans" if "in_chans" in args else "pretrained_cfg.input_size"
    entries = (
        (top, config.get("num_classes", cfg.get("num_classes", classes)), classes, "classes"),
        ("model_args.num_classes", args.get("num_classes", classes), classes, "classes"),
        (size, args.get("in_chans", cfg.get("input_size", [channels])[0]), channels, "input channels"),
    )
    for entry, told, found, what in entries:
        if told != found:
            raise ValueError(
                f"{path / CONFIG} says {told} {what} in {entry}, but the weights in {file.name} have {found}; correct "
                "the entry, or convert the checkpoint again"
            )
    if cfg.get("architecture") not in (None, config["architecture"]):
        raise _broken(
            path, "pretrained_cfg.architecture", cfg["architecture"], f"{config['architecture']}, as at the top"
        )
    for entry in ("mean", "std"):
        if entry in cfg and len(cfg[entry]) != channels:
            raise _broken(path, f"pretrained_cfg.{entry}", cfg[entry], f"a list of {channels}, one for each channel")
    for entry in ("label_names", "labels"):
        for where, names in ((entry, config.get(entry)), (f"pretrained_cfg.{entry}", cfg.get(entry))):
            _check_labels(path, where, names, classes)
    return Directory(arch, tag, state_dict, config.get("num_features"))


def read_config(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a folder, and check the kind of every entry.

    Args:
        path: The folder.

    Returns:
        The JSON document.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON, or an entry is broken; the message names the entry and what was expected.
    """
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no {CONFIG}; expected a directory written by `timm-mobilevit convert` "
            "or timm.models.save_for_hf, or a checkpoint file"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(
            f"{file} is not the configuration of a timm model: expected JSON in UTF-8; {reason}"
        ) from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(f"{file} is not the configuration of a timm model: expected JSON with 'architecture'")
    if str(config["architecture"]).partition(".")[0] not in VARIANTS:
        raise _broken(path, "architecture", config["architecture"], "a name that `timm-mobilevit list` shows")
    whole = "pretrained_cfg" in config
    _check(path, "", config, _TOP | (_CFG if not whole else {}), strict=not whole)
    if whole:
        _check(path, "pretrained_cfg.", config["pretrained_cfg"], _CFG, strict=True)
    _check(path, "model_args.", config.get("model_args", {}), _ARGS, strict=False)
    return config


def names_by_class(names: Any, classes: int) -> list[Any]:
    """Return the ``label_names`` of a configuration, one per class: it may key them by number, with gaps.

    Example:
        >>> names_by_class({"0": "cat", "2": "dog"}, 3), names_by_class(["cat", "dog"], 2)
        (['cat', None, 'dog'], ['cat', 'dog'])
    """
    if isinstance(names, Mapping):
        keyed = {int(key): name for key, name in names.items()}  # JSON made strings of the numbers
        return [keyed.get(index) for index in range(classes)]
    return list(names or ())


def settings_of_training(options: Mapping[str, Any], channels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what timm's ``train.py`` was told that the weights do not show: for ``pretrained_cfg`` and ``model_args``.

    Args:
        options: Of the script; values of a kind that ``config.json`` may not have are left out.
        channels: Input channels of the model.

    Example:
        >>> settings_of_training({"img_size": 64, "mean": [0.5], "model_kwargs": {"act_layer": "relu"}}, channels=3)
        ({'input_size': (3, 64, 64), 'mean': (0.5, 0.5, 0.5)}, {'act_layer': 'relu'})
    """
    cfg: dict[str, Any] = {key: options.get(key) for key in ("input_size", "crop_pct", "mean", "std", "interpolation")}
    if side := options.get("img_size"):
        cfg["input_size"] = cfg["input_size"] or [channels, side, side]  # as in timm's resolve_data_config
    for key in ("mean", "std"):
        if isinstance(cfg[key], (list, tuple)):
            cfg[key] = list(cfg[key]) * (channels if len(cfg[key]) == 1 else 1)
            cfg[key] = cfg[key] if len(cfg[key]) == channels else None
    kwargs = options.get("model_kwargs")
    args = {key: kwargs.get(key) for key in _HIDDEN} if isinstance(kwargs, Mapping) else {}
    args["global_pool"] = args.get("global_pool") or options.get("gp")
    cfg = {key: value for key, value in cfg.items() if value and _CFG[key].takes(value)}
    args = {key: value for key, value in args.items() if value and _HIDDEN[key].takes(value)}
    if cfg.get("input_size", [channels])[0] != channels:
        del cfg["input_size"]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}, args


def _check(path: Path, prefix: str, entries: Mapping[str, Any], rules: Mapping[str, "_Rule"], *, strict: bool) -> None:
    for name, value in entries.items():
        rule = rules.get(name)
        if rule is None and strict:
            raise ValueError(f"{path / CONFIG} has an unknown entry {prefix}{name}; timm has no such setting")
        if rule is not None and not rule.takes(value):
            raise _broken(path, prefix + name, value, rule.expected)


def _check_labels(path: Path, entry: str, names: Any, classes: int) -> None:
    """Check that class names are one per class, or keyed by the number of the class."""
    if isinstance(names, dict):
        if stray := [key for key in names if not (key.isdecimal() and int(key) < classes)]:
            raise _broken(path, entry, stray[0], f"numbers of classes below {classes} as keys")
    elif names and len(names) != classes:
        raise ValueError(f"{path / CONFIG} names {len(names)} classes in {entry}, but the weights have {classes}")


def _broken(path: Path, entry: str, value: Any, expected: str) -> ValueError:
    text = json.dumps(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ValueError(f"{path / CONFIG} has a broken entry {entry}: expected {expected}, got {text}")


def _weights_file(path: Path) -> Path:
    for name in _NAMES:
        if (path / name).exists():
            return path / name
    if shards := sorted(path.glob("*.index.json")):
        return shards[0]  # which is refused by name
    for ending in _ENDINGS:
        if files := sorted(path.glob(f"*{ending}")):
            if len(files) > 1:
                raise ValueError(
                    f"{path} has several weights, {files[0].name} and {files[1].name}: name a file of them"
                )
            return files[0]
    raise FileNotFoundError(f"No suitable checkpoints in {path}: expected {_NAMES[0]} beside {CONFIG}")


@dataclass(frozen=True)
class _Rule:
    """Values that an entry may have.

    Attributes:
        takes: Returns whether a value is allowed.
        expected: The same in words.
    """

    takes: _Check
    expected: str

    def __or__(self, other: "_Rule") -> "_Rule":
        return _Rule(lambda value: self.takes(value) or other.takes(value), f"{self.expected} or {other.expected}")


def _is_whole(value: Any, least: int, most: int = 2**31 - 1) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value)


def _are(takes: _Check, count: int | None = None) -> _Check:
    return lambda value: (
        isinstance(value, list) and len(value) == (count or len(value) or -1) and all(map(takes, value))
    )


_NULL = _Rule(lambda value: value is None, "null")
_TEXT = _Rule(lambda value: isinstance(value, str), "a text")
_TEXTS = _TEXT | _Rule(_are(_TEXT.takes), "a list of texts") | _NULL
_BOOL = _Rule(lambda value: isinstance(value, bool), "true or false")
_COUNT = _Rule(lambda value: _is_whole(value, 0), "a whole number from 0 on")
_POSITIVE = _Rule(lambda value: _is_whole(value, 1), "a whole number from 1 on")
_SIDE = _Rule(lambda value: _is_whole(value, 1, 2**16), "a size in pixels")
_SIDES = _Rule(_are(_SIDE.takes, 2), "a list of height and width")
_SIZE = _Rule(_are(_SIDE.takes, 3), "a list of channels, height and width, whole numbers from 1 on")
_SHARE = _Rule(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1")
_RATE = _Rule(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 on, below 1")
_MEAN = _Rule(_are(_is_number), "a list of numbers")
_STD = _Rule(_are(lambda value: _is_number(value) and value > 0), "a list of numbers above 0")
_LABELS = (
    _Rule(_are(_TEXT.takes), "a list of class names")
    | _Rule(lambda value: isinstance(value, dict) and all(map(_TEXT.takes, value.values())), "names by class number")
    | _NULL
)
_MAPPING = _Rule(lambda value: isinstance(value, dict), "a mapping")


def _one_of(*names: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")


# The entries of timm's config.json: at its top, in pretrained_cfg, and of model_args those that timm or we read.
_TOP = {
    "architecture": _TEXT,
    "num_classes": _COUNT,
    "num_features": _POSITIVE | _NULL,
    "label_names": _LABELS,
    "labels": _LABELS,
    "label_descriptions": _MAPPING | _NULL,
    "global_pool": _TEXT | _NULL,
    "model_args": _MAPPING,
    "pretrained_cfg": _MAPPING,
}
_CFG = {
    **dict.fromkeys(("url", "file", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag"), _TEXT | _NULL),
    **dict.fromkeys(("first_conv", "classifier", "paper_ids", "notes"), _TEXTS),
    **dict.fromkeys(("license", "description", "origin_url", "paper_name"), _TEXT | _NULL),
    "state_dict": _NULL,
    "custom_load": _BOOL,
    "input_size": _SIZE,
    "test_input_size": _SIZE | _NULL,
    "min_input_size": _SIZE | _NULL,
    "fixed_input_size": _BOOL,
    "interpolation": _one_of("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "crop_pct": _SHARE,
    "test_crop_pct": _SHARE | _NULL,
    "crop_mode": _one_of("center", "squash", "border"),
    "mean": _MEAN,
    "std": _STD,
    "num_classes": _COUNT,
    "label_offset": _COUNT | _NULL,
    "label_names": _LABELS,
    "label_descriptions": _MAPPING | _NULL,
    "pool_size": _SIDES | _NULL,
    "test_pool_size": _SIDES | _NULL,
}
_ARGS = {
    "num_classes": _COUNT,
    "in_chans": _POSITIVE,
    "img_size": _SIDE | _SIDES,
    **dict.fromkeys(("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), _RATE),
    "global_pool": _one_of("", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax"),
}
# Arguments of a model that leave no trace in its weights.
_HIDDEN = {
    "act_layer": _TEXT,
    "patch_size": _POSITIVE | _Rule(_are(lambda value: _is_whole(value, 1), 3), "one for each of three stages"),
    "output_stride": _POSITIVE,
    "exact_feature_size": _BOOL,
    "global_pool": _ARGS["global_pool"],
}

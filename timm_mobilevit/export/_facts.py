"""What an application needs to know about a model: in the metadata of ONNX files, in a JSON file beside the others."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ._labels import known_class_names

_CFG_KEYS = ("architecture", "tag", "mean", "std", "interpolation", "crop_pct", "crop_mode", "license")


def find_facts(
    model: nn.Module, input_size: tuple[int, int, int], labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """Architecture, preprocessing, size of the images and class names of a model, each only if it is known.

    Args:
        model: The model.
        input_size: Channels, height and width of the images that the file takes.
        labels: Names of the classes, if others than ``known_class_names`` finds.

    Returns:
        Values that JSON has.

    Raises:
        ValueError: If there are more or fewer labels than classes.

    Example:
        >>> import timm
        >>> facts = find_facts(timm.create_model("mobilevitv3_xxs", num_classes=2), (3, 64, 64), ["cat", "dog"])
        >>> facts["architecture"], facts["input_size"], facts["labels"]
        ('mobilevitv3_xxs', [3, 64, 64], ['cat', 'dog'])
    """
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    facts = {key: cfg[key] for key in _CFG_KEYS if cfg.get(key)}
    facts["input_size"] = list(input_size)
    if names := known_class_names(model, labels):
        facts["labels"] = names
    info: Any = getattr(model, "feature_info", None)
    if info is not None and not hasattr(model, "num_classes"):
        facts["feature_reductions"] = info.reduction()
    return facts | getattr(model, "export_metadata", {})


def facts_file(path: Path) -> Path:
    """The JSON file beside an exported one.

    Example:
        >>> facts_file(Path("digits.tflite")).name
        'digits.tflite.json'
    """
    return path.with_name(f"{path.name}.json")


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write the JSON file beside an exported one that is not in its place yet: both are moved there together."""
    facts_file(path).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_facts(path: Path) -> dict[str, Any]:
    """What an exported file says about its model: its own metadata if it is ONNX, or the JSON file beside it.

    Raises:
        FileNotFoundError: If there is no JSON file.
        ValueError: If it does not tell the size of the images.
    """
    if path.suffix == ".onnx":
        import onnx

        facts = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
    else:
        source = facts_file(path)
        if not source.is_file():
            raise FileNotFoundError(f"there is no {source}, which says what {path.name} was made from; export it again")
        facts = json.loads(source.read_text(encoding="utf-8"))
    if "input_size" not in facts:
        raise ValueError(f"{path} does not say which images it takes; expected a file of `timm-mobilevit export`")
    return facts

"""What an application needs to know about a model: in the metadata of ONNX files, in a JSON file beside the others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ._format import facts_file
from ._labels import known_class_names

_CFG_KEYS = ("architecture", "tag", "mean", "std", "interpolation", "crop_pct", "crop_mode", "license")


def find_facts(
    model: nn.Module, input_size: tuple[int, int, int], labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """Architecture, preprocessing, size of the images and class names of a model, each only if it is known.

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


def suppresses_classes_together(facts: Mapping[str, Any], name: str) -> bool:
    """Whether a detector suppresses the boxes of all classes together, and not those of each class.

    Raises:
        ValueError: If its suppression is of a kind that no exported file has; ``name`` says in the message whose it is.

    Example:
        >>> suppresses_classes_together({"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_class": 9}, "ssd.onnx")
        False
    """
    kind, per_class = facts["nms"], facts["max_per_class"]
    if kind.get("type", "nms") != "nms" or kind.keys() - {"type", "iou_threshold", "class_agnostic"}:
        raise ValueError(
            f"the suppression of {name} is {kind}, expected dict(type='nms', iou_threshold=…); export it with --raw"
        )
    if kind.get("class_agnostic") and per_class > 0:
        raise ValueError(f"max_per_class={per_class} goes with a suppression per class; export {name} with --raw")
    return bool(kind.get("class_agnostic"))

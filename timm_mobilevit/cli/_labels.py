"""Names of a model's classes."""

import json
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..export._metadata import known_class_names


def class_names(model: nn.Module, labels: Path | None = None) -> list[str]:
    """Return one name per class.

    In this order: from ``labels``, from the model's own configuration, from ImageNet if the number of classes is that
    of ImageNet, or else the numbers of the classes.

    Raises:
        ValueError: If the file does not name as many classes as the model has.
    """
    count = int(model.num_classes)  # type: ignore[arg-type]
    if labels is not None:
        names = read_labels(labels)
        if len(names) != count:
            raise ValueError(f"{labels} names {len(names)} classes, but the model has {count}")
        return names
    if known := known_class_names(model):
        return known
    subset = infer_imagenet_subset(model)
    return list(ImageNetInfo(subset).label_descriptions()) if subset else [str(i) for i in range(count)]


def read_labels(path: Path) -> list[str]:
    """Read class names in the order of the classes.

    Args:
        path: A text file with one name per line; or JSON (``.json``), a list of names, a mapping of class numbers to
            names, or one of names to class numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of these.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no label file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.rstrip().splitlines()]
        data = json.loads(text)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"cannot read class names from {path}: {error}") from error
    if isinstance(data, dict):
        data = _in_order(data)
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise ValueError(
            f"{path} must hold a list of class names, or a mapping of the class numbers 0, 1, 2 … to names or back"
        )
    return data


def _in_order(mapping: dict[str, Any]) -> list[Any] | None:
    """Return the names of a mapping from number to name or from name to number; None if it is neither."""
    if all(type(value) is int for value in mapping.values()):
        mapping = {str(number): name for name, number in mapping.items()}
    numbers = [str(i) for i in range(len(mapping))]
    return [mapping[number] for number in numbers] if sorted(mapping) == sorted(numbers) else None

"""What an application needs to know about a model: in the metadata of ONNX files, in a JSON file beside the others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..weights.directory import names_by_class
from ._format import metadata_file

_CFG_KEYS = ("architecture", "tag", "mean", "std", "interpolation", "crop_pct", "crop_mode", "license")


def find_metadata(
    model: nn.Module, input_size: tuple[int, int, int], labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """Collect architecture, preprocessing, size of the images and class names of a model, each only if it is known.

    Raises:
        ValueError: If there are more or fewer labels than classes.

    Example:
        >>> import timm
        >>> metadata = find_metadata(timm.create_model("mobilevitv3_xxs", num_classes=2), (3, 64, 64), ["cat", "dog"])
        >>> metadata["architecture"], metadata["input_size"], metadata["labels"]
        ('mobilevitv3_xxs', [3, 64, 64], ['cat', 'dog'])
    """
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    metadata = {key: cfg[key] for key in _CFG_KEYS if cfg.get(key)}
    for key in metadata.keys() & {"mean", "std"}:
        values = [float(value) for value in metadata[key]]
        if len(values) != input_size[0]:  # of three channels, though the model was built for others; as timm does
            values = [sum(values) / len(values)] * input_size[0]
        metadata[key] = values
    metadata["input_size"] = list(input_size)
    if names := known_class_names(model, labels):
        metadata["labels"] = names
    info: Any = getattr(model, "feature_info", None)
    if info is not None and not hasattr(model, "num_classes"):
        # timm gives the maps in the order of the stages, each once, however they were asked for.
        indices = sorted({index % len(info.info) for index in info.out_indices})
        metadata["feature_reductions"] = info.reduction(indices)
    return metadata | getattr(model, "export_metadata", {})


def find_mean_and_std(metadata: Mapping[str, Any], purpose: str) -> dict[str, list[float]]:
    """Return the mean and standard deviation of the images.

    Raises:
        ValueError: If one is not known; ``purpose`` says in the message what needs it.
    """
    if missing := [key for key in ("mean", "std") if not metadata.get(key)]:
        raise ValueError(
            f"{purpose} needs the {' and '.join(missing)} of the images, which the model does not know; set them in "
            "its pretrained_cfg"
        )
    return {key: list(metadata[key]) for key in ("mean", "std")}


def known_class_names(model: nn.Module, labels: Sequence[str] | None = None) -> list[str] | None:
    """Return one name per class of a classifier, None if they are not known or it is no classifier.

    In this order: ``labels``; those that the model's configuration records; those of ImageNet if the configuration
    names the weights as published ones (by a tag) and the number of classes is that of one of its sets.

    Raises:
        ValueError: If there are more or fewer labels than classes.

    Example:
        >>> import timm
        >>> model = timm.create_model("mobilevitv3_xxs.micron_in1k")
        >>> known_class_names(model)[:2]
        ['tench, Tinca tinca', 'goldfish, Carassius auratus']
    """
    count = int(getattr(model, "num_classes", 0))
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    if labels is None and count:
        labels = _recorded_names(cfg, count)
    if labels is None and count and cfg.get("tag") and (subset := infer_imagenet_subset(model)):
        labels = ImageNetInfo(subset).label_descriptions()
    if labels is None:
        return None
    if len(labels) != count:
        raise ValueError(f"got {len(labels)} labels, but the model has {count} classes")
    return [str(label) for label in labels]


def _recorded_names(cfg: dict[str, Any], count: int) -> list[str] | None:
    """Return the names that timm's configuration records: descriptions where there are some."""
    if not cfg.get("label_names"):
        return None
    descriptions = cfg.get("label_descriptions") or {}
    own = names_by_class(cfg["label_names"], count)
    return [str(descriptions.get(name, index if name is None else name)) for index, name in enumerate(own)]


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Write the JSON file beside an exported one that is not in its place yet: both are moved there together."""
    metadata_file(path).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of an exported file: its own if it is ONNX, otherwise those in the JSON file beside it.

    Raises:
        FileNotFoundError: If there is no JSON file.
        ValueError: If they do not tell the size of the images, or the file is damaged.
    """
    if path.suffix == ".onnx":
        import onnx
        from google.protobuf.message import DecodeError

        try:
            metadata = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
        except DecodeError as error:
            raise ValueError(f"{path} is no ONNX file, or a damaged one: {error}") from error
        except ValueError:  # another program's, whose values are no JSON
            metadata = {}
    else:
        source = metadata_file(path)
        if not source.is_file():
            raise FileNotFoundError(f"there is no {source}, which says what {path.name} was made from; export it again")
        metadata = json.loads(source.read_text(encoding="utf-8"))
    if "input_size" not in metadata:
        raise ValueError(f"{path} does not say which images it takes; expected a file of `timm-mobilevit export`")
    return metadata


def suppresses_classes_together(metadata: Mapping[str, Any], name: str) -> bool:
    """Tell whether a detector suppresses the boxes of all classes together, and not those of each class.

    Raises:
        ValueError: If no exported file has its kind of non-maximum suppression; ``name`` says in the message whose it
            is.
    """
    kind, per_class = metadata["nms"], metadata["max_per_class"]
    if kind.get("type", "nms") != "nms" or kind.keys() - {"type", "iou_threshold", "class_agnostic"}:
        raise ValueError(
            f"the suppression of {name} is {kind}, expected dict(type='nms', iou_threshold=…); export it with --raw"
        )
    if kind.get("class_agnostic") and per_class > 0:
        raise ValueError(f"max_per_class={per_class} goes with a suppression per class; export {name} with --raw")
    return bool(kind.get("class_agnostic"))

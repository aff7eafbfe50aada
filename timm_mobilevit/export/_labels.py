"""Names of a model's classes, for the files that hold them."""

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn


def known_class_names(model: nn.Module, labels: Sequence[str] | None = None) -> list[str] | None:
    """One name per class of a classifier, None if nobody knows them or it is no classifier.

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
        labels = _recorded(cfg, count)
    if labels is None and count and cfg.get("tag") and (subset := infer_imagenet_subset(model)):
        labels = ImageNetInfo(subset).label_descriptions()
    if labels is None:
        return None
    if len(labels) != count:
        raise ValueError(f"got {len(labels)} labels, but the model has {count} classes")
    return [str(label) for label in labels]


def _recorded(cfg: dict[str, Any], count: int) -> list[str] | None:
    """Names that timm's configuration records: descriptions where there are some."""
    own = cfg.get("label_names")
    if not own:
        return None
    descriptions = cfg.get("label_descriptions") or {}
    if not isinstance(own, dict):
        return [str(descriptions.get(name, name)) for name in own]
    keyed = {int(key): name for key, name in own.items()}  # it may have gaps; JSON made strings of its keys
    return [str(descriptions.get(keyed.get(i), keyed.get(i, i))) for i in range(count)]

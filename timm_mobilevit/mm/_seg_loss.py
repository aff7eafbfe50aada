"""Weights of classes in mmseg's cross-entropy, where pixels are ignored."""

from ._installed import check_installed

check_installed("segmentation")

from typing import Any

from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from torch import Tensor, nn


def mend_class_weights(head: nn.Module) -> None:
    """Let the cross-entropy losses of a head take ``class_weight`` beside ignored pixels, in place.

    mmseg looks up the weight of class 255 for an ignored pixel or, with ``avg_non_ignore=True``, applies a mask of all
    pixels to a list of those that are not ignored. Both raise an ``IndexError``.

    Args:
        head: A decode head of mmseg. Other losses are left as they are.
    """
    for loss in head.modules():
        if isinstance(loss, CrossEntropyLoss) and loss.class_weight is not None and loss.cls_criterion is cross_entropy:
            loss.cls_criterion = _weighted_cross_entropy


def _weighted_cross_entropy(
    pred: Tensor, label: Tensor, *args: Any, class_weight: Tensor, ignore_index: int, **kwargs: Any
) -> Tensor:
    """Compute mmseg's cross-entropy with PyTorch's mean: weighted by the classes of the pixels that count."""
    if kwargs["reduction"] == "mean" and kwargs.get("avg_factor") is None:
        kwargs["avg_factor"] = class_weight[label[label != ignore_index]].sum()
    return cross_entropy(  # type: ignore[no-any-return]
        pred, label, *args, class_weight=class_weight, ignore_index=ignore_index, **kwargs
    )

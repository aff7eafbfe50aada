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
            loss.cls_criterion = weighted_cross_entropy


def weighted_cross_entropy(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: Any = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> Tensor:
    """Compute mmseg's cross-entropy, with PyTorch's mean: weighted by the classes of the pixels that are not ignored.

    Args:
        pred: Logits [B, classes, H, W].
        label: Classes [B, H, W].
        weight: Weights of the pixels [B, H, W].
        class_weight: One weight per class.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        avg_factor: Divisor of the mean, if another one.
        ignore_index: Label of the pixels without loss.
        **kwargs: As for mmseg's function.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> pred, label = torch.rand(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
        >>> label[:, 0], weights = 255, torch.tensor([1.0, 2.0, 4.0])
        >>> ours = weighted_cross_entropy(pred, label, class_weight=weights, ignore_index=255)
        >>> torch.allclose(ours, F.cross_entropy(pred, label, weights, ignore_index=255))
        True
    """
    if class_weight is not None and reduction == "mean" and avg_factor is None:
        avg_factor = class_weight[label[label != ignore_index]].sum()
    return cross_entropy(  # type: ignore[no-any-return]
        pred, label, weight, class_weight, reduction, avg_factor, ignore_index, **kwargs
    )

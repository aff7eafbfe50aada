"""The segmentor of the reference: logits are resized as its evaluation does."""

from ._installed import check_installed

check_installed("segmentation")

import inspect
from typing import Any, Literal

import torch.nn.functional as F
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ._seg_loss import mend_class_weights

_AVG_NON_IGNORE = "avg_non_ignore"


@MODELS.register_module()
class MobileViTEncoderDecoder(EncoderDecoder):  # type: ignore[misc]
    """Segmentor that resizes logits from the last map to the original image as the reference does.

    mmseg resizes them twice, bilinearly: to the network's input and to the original image.

    Losses of the heads may have ``class_weight`` where pixels are ignored. A loss that is put in the place of our
    configs' cross-entropy inherits ``avg_non_ignore=True``; where it does not take that, it does not get it.

    Args:
        resize: ``"direct"``: bilinearly, once, from the map to the original image (CVNets v0.2). ``"nearest"``:
            bilinearly to the input, then to the nearest neighbour (CVNets v0.1). ``"mmseg"``: as mmseg does.
        **kwargs: As for ``mmseg.models.EncoderDecoder``.

    Raises:
        ValueError: If ``resize`` is none of these.
    """

    def __init__(self, resize: Literal["direct", "nearest", "mmseg"] = "direct", **kwargs: Any) -> None:
        if resize not in ("direct", "nearest", "mmseg"):
            raise ValueError(f"resize must be 'direct', 'nearest' or 'mmseg', got {resize!r}")
        for head in ("decode_head", "auxiliary_head"):
            if kwargs.get(head):
                kwargs[head] = _without_foreign_options(kwargs[head])
        super().__init__(**kwargs)
        self.resize = resize
        mend_class_weights(self)

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """Segment images [B, 3, H, W]; without data samples, which say the original size, at their own size."""
        if data_samples is None:
            meta = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), tuple(inputs.shape[-2:]))
            data_samples = [SegDataSample(metainfo=meta) for _ in inputs]
        return super().predict(inputs, data_samples)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Map images to logits [B, classes, H, W]: of the last map's size if they can be resized once from there."""
        if self.resize == "direct" and self.test_cfg.get("mode") == "whole" and not _padded(batch_img_metas):
            return self.decode_head(self.extract_feat(inputs))  # type: ignore[no-any-return]
        return super().encode_decode(inputs, batch_img_metas)  # type: ignore[no-any-return]

    def postprocess_result(self, seg_logits: Tensor, data_samples: Any = None) -> Any:
        """Resize logits to the original images and pick the best class per pixel."""
        if data_samples is not None:
            metas = [sample.metainfo for sample in data_samples]
            sizes = [tuple(meta["ori_shape"][:2]) for meta in metas]
            if self.resize == "nearest" and len(set(sizes)) > 1:  # one tensor has one size: image by image
                images = zip(seg_logits[:, None], data_samples, strict=True)  # [1, classes, H, W] each
                return [self.postprocess_result(logits, [sample])[0] for logits, sample in images]
            if self.resize == "nearest" and not _padded(metas):
                # Of the right size already, mmseg's own resize changes nothing more.
                seg_logits = F.interpolate(seg_logits, size=sizes[0], mode="nearest")
        return super().postprocess_result(seg_logits, data_samples)


def _padded(metas: list[dict[str, Any]]) -> bool:
    """Return whether a border must be cut off, which mmseg does in pixels of the input."""
    return any(any(meta.get("img_padding_size", meta.get("padding_size", ()))) for meta in metas)


def _without_foreign_options(part: Any) -> Any:
    """Return the config of heads or losses, with ``avg_non_ignore`` only in losses that take it."""
    if isinstance(part, list | tuple):
        return [_without_foreign_options(item) for item in part]
    if part.get("loss_decode"):
        return {**part, "loss_decode": _without_foreign_options(part["loss_decode"])}
    if _AVG_NON_IGNORE in part:
        loss = MODELS.get(part["type"]) if isinstance(part["type"], str) else part["type"]
        taken = inspect.signature(loss).parameters if loss else {}
        passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        if loss and _AVG_NON_IGNORE not in taken and not passed_on:
            return {key: value for key, value in part.items() if key != _AVG_NON_IGNORE}
    return part

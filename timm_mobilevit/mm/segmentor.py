"""The segmentor of the reference: logits are resized as its evaluation does."""

from typing import Any, Literal

import torch.nn.functional as F
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor


@MODELS.register_module()
class MobileViTEncoderDecoder(EncoderDecoder):  # type: ignore[misc]
    """Segmentor that resizes logits from the last map to the original image as the reference does.

    mmseg resizes them twice, bilinearly: to the network's input and to the original image.

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
        super().__init__(**kwargs)
        self.resize = resize

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """Segment images [B, 3, H, W]; without data samples, which say the original size, at their own size."""
        if data_samples is None:
            shape = tuple(inputs.shape[-2:])
            meta = {"ori_shape": shape, "img_shape": shape, "pad_shape": shape}
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
            sizes = {tuple(meta["ori_shape"][:2]) for meta in metas}
            if self.resize == "nearest" and len(sizes) == 1 and not _padded(metas):
                # Of the right size already, mmseg's own resize changes nothing more.
                seg_logits = F.interpolate(seg_logits, size=sizes.pop(), mode="nearest")
        return super().postprocess_result(seg_logits, data_samples)


def _padded(metas: list[dict[str, Any]]) -> bool:
    """Whether a border must be cut off, which mmseg does in pixels of the input."""
    return any(any(meta.get("img_padding_size", meta.get("padding_size", ()))) for meta in metas)

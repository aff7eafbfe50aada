"""Test-time augmentation of segmentors, those of one output channel too."""

from ._installed import check_installed

check_installed("segmentation")

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.registry import MODELS


@MODELS.register_module()
class MobileViTSegTTAModel(SegTTAModel):  # type: ignore[misc]
    """mmseg's average over the augmented images, which is right for binary segmentation too.

    With ``out_channels=1`` a segmentor gives probabilities. mmseg's own class applies the sigmoid to them a second
    time: then no pixel is below 0.5, and all are above the usual threshold.
    """

    def merge_preds(self, data_samples_list: Any) -> Any:
        """Merge the predictions of the augmented images to one sample per image."""
        if self.module.out_channels > 1:
            return super().merge_preds(data_samples_list)
        merged = []
        for first, *others in data_samples_list:
            probability = torch.stack([sample.seg_logits.data for sample in (first, *others)]).mean(0)
            first.set_data({"pred_sem_seg": PixelData(data=(probability > self.module.decode_head.threshold).long())})
            merged.append(first)
        return merged

"""Detectors and segmentors rewritten for inference against themselves."""

import pytest
import torch
from mm_models import KINDS, segmentor, ssd
from mmcv.cnn import ConvModule
from torch import nn

from timm_mobilevit import optimize_for_inference


def assert_folded(model: nn.Module) -> None:
    """No norm is left behind a convolution of ours or of mmcv's."""
    for module in model.modules():
        assert not isinstance(module, nn.BatchNorm2d)
        assert not (isinstance(module, ConvModule) and module.conv.bias is None and module.with_norm)


@pytest.mark.parametrize("arch", KINDS)
def test_detector(arch):
    model = ssd(arch, num_classes=3).double().eval()
    fast = optimize_for_inference(model)
    assert_folded(fast)
    images = torch.rand(2, 3, 256, 256, dtype=torch.double)
    for ours, expected in zip(fast(images), model(images), strict=True):  # scores, boxes: a map per level
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_segmentor(head):
    model = segmentor(KINDS[-1], head, 3, output_stride=16, rates=(6, 12, 18)).double().eval()
    fast = optimize_for_inference(model)
    images = torch.rand(1, 3, 128, 128, dtype=torch.double)
    torch.testing.assert_close(fast(images), model(images))
    assert_folded(fast)

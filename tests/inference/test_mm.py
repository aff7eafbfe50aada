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


@pytest.mark.parametrize(
    "build",
    [
        lambda: ssd(KINDS[-1], num_classes=3),
        lambda: segmentor(KINDS[-1], "deeplabv3", 3, output_stride=16, rates=(6, 12, 18)),
    ],
    ids=["ssdlite", "deeplabv3"],
)
def test_bfloat16(build):
    """Detectors and segmentors compute in it, heads too, and give float32."""
    model = build().eval()
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    types = []
    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, out: types.append(out.dtype))
    images = torch.rand(1, 3, 256, 256)
    ours, expected = ([out] if isinstance(out, torch.Tensor) else out for out in (fast(images), model(images)))
    assert set(types) == {torch.bfloat16}
    for one, other in zip(
        torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert one.dtype == torch.float32
        assert 1e-5 < (one - other).square().mean().sqrt() / other.std() < 0.1

"""Norms and scales in the convolutions behind them."""

import pytest
import torch
from export_models import shallow
from kinds import KINDS
from torch import nn

from timm_mobilevit import optimize_for_inference
from timm_mobilevit.inference.fold_transformers import fold_transformers
from timm_mobilevit.network.attention import MultiHeadAttention


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_left_to_multiply(name):
    """With norms that are not at the 1 and 0 that they start as."""
    model = shallow(name)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 0.01
    fast = optimize_for_inference(model)
    assert all(module.weight is None for module in fast.modules() if isinstance(module, nn.GroupNorm))
    assert all(module.scale_in_qkv for module in fast.modules() if isinstance(module, MultiHeadAttention))
    x = torch.rand(2, 3, 70, 96)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, rtol=0, atol=1e-5 * expected.std().item())
        again = optimize_for_inference(fast)  # folds nothing twice
        torch.testing.assert_close(again(x), expected, rtol=0, atol=1e-5 * expected.std().item())


def test_plain_attention_has_no_scale_of_its_own():
    attention = MultiHeadAttention(64).eval()
    attention.fused_attn = False
    x = torch.randn(2, 16, 64)
    expected = attention(x)
    fold_transformers(attention)
    torch.testing.assert_close(attention(x), expected)
    attention.fused_attn = True
    torch.testing.assert_close(attention(x), expected)


class Wrapped(nn.Module):
    """Another layer in the place of one, as adapters are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)

    @property
    def out_features(self):
        return self.layer.out_features


@pytest.mark.parametrize("name", KINDS)
def test_layers_that_were_replaced_stay(name):
    model = shallow(name)
    for module in list(model.modules()):
        for child in ("qkv", "qkv_proj", "fc1"):
            if isinstance(getattr(module, child, None), (nn.Linear, nn.Conv2d)):
                setattr(module, child, Wrapped(getattr(module, child)))
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        fast = optimize_for_inference(model)(x)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-5 * expected.std().item())

"""timm's switch between fused and plain attention, hooks on the attention weights, pruned heads."""

import pytest
import timm
import torch
from kinds import EVERY, KINDS
from random_weights import randomise
from timm.utils import AttentionExtract
from torch import nn
from torch.testing import assert_close

from timm_mobilevit.network.attention import MultiHeadAttention, SeparableAttention
from timm_mobilevit.variants import VARIANTS

MULTI_HEAD = [name for name in KINDS if not VARIANTS[name].separable]


@pytest.fixture
def plain():
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


def switches(model):
    return {module.fused_attn for module in model.modules() if isinstance(module, MultiHeadAttention)}


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_plain_equals_fused(name):
    model = randomise(timm.create_model(name, num_classes=3).double())
    assert switches(model) == {True}
    images = torch.rand(2, 3, 70, 64, dtype=torch.double)
    fused = model(images)
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.fused_attn = False
    assert_close(model(images), fused)


def test_switch_is_read_when_the_model_is_built(plain):
    assert switches(timm.create_model(MULTI_HEAD[0])) == {False}


@pytest.mark.parametrize("name", EVERY)
def test_timm_extracts_attention(name, plain):
    model = timm.create_model(name).eval()
    found = AttentionExtract(model, method="hook")(torch.rand(1, 3, 64, 64))
    assert len(found) == sum(VARIANTS[name].transformer_depths)
    for weights in found.values():
        sums = weights.sum(dim=-1)  # over the tokens, or the patches
        assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_of_the_weights(fused):
    attention = MultiHeadAttention(8, 2, attn_drop=0.9)
    attention.fused_attn = fused
    x = torch.rand(4, 16, 8)
    assert not torch.equal(attention(x), attention(x))
    attention.attn_drop.p = 0.0  # both forms ask the module
    assert_close(attention(x), attention.eval()(x))


@pytest.mark.parametrize("fused", [True, False])
def test_pruned_heads(fused):
    """Two of four heads, and half of the width of each, as torch-pruning leaves the layers."""
    attention = MultiHeadAttention(32, 4).double()
    attention.fused_attn = fused
    keep = torch.tensor([8, 9, 10, 11, 24, 25, 26, 27])  # channels of heads 1 and 3
    rows = torch.cat([keep, 32 + keep, 64 + keep])
    x = torch.rand(2, 9, 32, dtype=torch.double)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.qkv(x)[..., rows].chunk(3, -1))
    expected = ((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = expected @ attention.proj.weight[:, keep].T + attention.proj.bias
    for name, width in (("qkv", 24), ("proj", 32)):
        layer = getattr(attention, name)
        pruned = nn.Linear(32 if name == "qkv" else 8, width).double()
        pruned.weight.data = layer.weight.data[rows] if name == "qkv" else layer.weight.data[:, keep]
        pruned.bias.data = layer.bias.data[rows] if name == "qkv" else layer.bias.data
        setattr(attention, name, pruned)
    attention.num_heads, attention.head_dim, attention.attn_dim = 2, 4, 8
    assert_close(attention(x), expected)


def test_separable_scores_add_up_per_phase():
    found = []
    attention = SeparableAttention(8)
    attention.attn_drop.register_forward_hook(lambda module, args, out: found.append(out))
    attention(torch.rand(2, 8, 6, 5))
    assert found[0].shape == (2, 1, 6, 5)  # [B, 1, P, N]
    assert_close(found[0].sum(dim=3), torch.ones(2, 1, 6))

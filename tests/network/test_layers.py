"""What single layers and blocks start as, drop, resize and remember, against numbers and formulas written out here."""

import math

import pytest
import timm
import torch
from kinds import KINDS
from random_weights import randomise
from timm.layers import DropPath
from torch import Tensor, nn
from torch.testing import assert_close

from timm_mobilevit.network.attention import SeparableTransformerLayer, TransformerLayer
from timm_mobilevit.network.blocks import InvertedResidual, MobileViTBlock, SeparableMobileViTBlock
from timm_mobilevit.network.layers import ConvNormAct
from timm_mobilevit.variants import VARIANTS


@pytest.mark.parametrize("name", KINDS)
def test_initial_values(name):
    """As CVNets initialises: convolutions normal by their outputs, linear layers normal of 0.02, all else neutral."""
    drawn = {nn.Conv2d: [], nn.Linear: []}
    for key, module in timm.create_model(name).named_modules():
        for tensor, value in (("running_mean", 0), ("running_var", 1), ("bias", 0)):
            if getattr(module, tensor, None) is not None:
                assert torch.all(getattr(module, tensor) == value), f"{key}.{tensor}"
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            assert torch.all(module.weight == 1), key
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            values, std = module.weight.detach().flatten(), 0.02
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            drawn[type(module)].append(values / std)
            assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * len(values))), key  # five standard errors
    assert len(drawn[nn.Linear]) == (1 if VARIANTS[name].separable else 1 + 4 * 9)
    for values in map(torch.cat, drawn.values()):
        assert values.mean().abs() < 5 / math.sqrt(len(values))
        assert values.pow(4).mean() == pytest.approx(3, rel=0.1)  # of a normal distribution; 1.8 of a uniform one


# The stochastic depth of a rate of 0.2, by block: it rises from the first of 10 or 9 blocks to the last. Blocks without
# a shortcut have none, but count.
RISING = {
    "mobilevitv1_xxs": {"1.1": 2 / 9, "1.2": 3 / 9, "2.1": 5 / 9, "3.1": 7 / 9, "4.1": 1.0},
    "mobilevitv2_0_5": {"1.1": 2 / 8, "2.1": 4 / 8, "3.1": 6 / 8, "4.1": 1.0},
    "mobilevitv3_xxs": {"1.1": 2 / 9, "1.2": 3 / 9, "2.1": 5 / 9, "3.1": 7 / 9, "4.1": 1.0},
    "mobilevitv3_0_5": {"1.1": 2 / 8, "2.1": 4 / 8, "3.1": 6 / 8, "4.1": 1.0},
}


@pytest.mark.parametrize("name", KINDS)
def test_dropouts_have_their_rates_and_places(name):
    rates = {"drop_rate": 0.5, "proj_drop_rate": 0.25, "attn_drop_rate": 0.125, "drop_path_rate": 0.2}
    model = timm.create_model(name, **rates)
    found = {key: module.drop_prob for key, module in model.named_modules() if isinstance(module, DropPath)}
    depths = {"2.1": 2, "3.1": 4, "4.1": 3}
    expected = {}
    for block, share in RISING[name].items():
        layers = [f".transformer.{i}" for i in range(depths[block])] if block in depths else [""]
        expected |= {f"stages.{block}{layer}.drop_path": pytest.approx(0.2 * share) for layer in layers}
    assert found == expected

    # Dropout acts once in a forward pass each, on what the layer before it returns, and on nothing else.
    layer = "proj" if not VARIANTS[name].separable else "out_proj"
    before = {"head.drop": "head.global_pool"}
    kept = {"head.drop": 0.5}
    for stage, depth in zip((2, 3, 4), (2, 4, 3), strict=True):
        for i in range(depth):
            prefix = f"stages.{stage}.1.transformer.{i}"
            before |= {f"{prefix}.attn.proj_drop": f"{prefix}.attn.{layer}", f"{prefix}.mlp.drop": f"{prefix}.mlp.fc2"}
            kept |= {f"{prefix}.attn.proj_drop": 0.25, f"{prefix}.mlp.drop": 0.25, f"{prefix}.attn.attn_drop": 0.125}
    dropouts = {key: module for key, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert {key: module.p for key, module in dropouts.items()} == kept
    outputs, inputs = {}, {}
    for key, module in model.named_modules():
        module.register_forward_hook(lambda _, args, out, key=key: outputs.setdefault(key, []).append(out))
        module.register_forward_pre_hook(lambda _, args, key=key: inputs.setdefault(key, []).append(args[0]))
    x = torch.rand(2, 3, 64, 64)
    model(x)
    for key, source in before.items():
        assert len(inputs[key]) == 1
        assert inputs[key][0] is outputs[source][0], key
        parent = key.rpartition(".")[0]
        if parent != "head":
            assert outputs[parent][0] is outputs[key][0], parent

    # Without any rate, training computes what evaluation does.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    randomise(model)
    expected = model(x)
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert_close(model(x), expected)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (TransformerLayer(8, drop_path=0.5), (2, 6, 8)),
        (SeparableTransformerLayer(8, drop_path=0.5), (2, 8, 4, 6)),
        (InvertedResidual(8, 8, expand_ratio=2, drop_path=0.5), (2, 8, 5, 5)),
    ],
)
def test_a_dropped_path_leaves_the_shortcut(block, shape):
    """In both branches of a layer."""
    x = torch.randn(shape)
    assert isinstance(block.drop_path, DropPath)
    block.drop_path = Nothing()
    assert torch.equal(block(x), x)


def bilinear(size: int, new: int, *, align_corners: bool) -> Tensor:
    """The matrix [new, size] of linear interpolation: corners at the centres of the outer pixels, or at their edges."""
    matrix = torch.zeros(new, size, dtype=torch.double)
    for i in range(new):
        place = i * (size - 1) / (new - 1) if align_corners else max((i + 0.5) * size / new - 0.5, 0.0)
        low = min(int(place), size - 1)
        high = min(low + 1, size - 1)
        matrix[i, low] += 1 - (place - low)
        matrix[i, high] += place - low
    return matrix


def resized(x: Tensor, height: int, width: int, *, align_corners: bool) -> Tensor:
    rows = bilinear(x.shape[2], height, align_corners=align_corners)
    columns = bilinear(x.shape[3], width, align_corners=align_corners)
    return rows @ x @ columns.T


@pytest.mark.parametrize("v3_fusion", [False, True])
def test_v1_resizes_tokens_between_the_edges(v3_fusion):
    """The map of the transformer alone, there and back; the local features keep their size."""
    block = randomise(
        MobileViTBlock(8, transformer_dim=16, transformer_depth=1, patch_size=(2, 4), v3_fusion=v3_fusion).double()
    )
    x = torch.randn(2, 8, 5, 9, dtype=torch.double)
    local = block.conv_1x1(block.conv_kxk(x))
    large = resized(local, 6, 12, align_corners=False)
    assert block.attend(large).shape == large.shape  # a map that the patch divides is not resized
    out = block.conv_proj(resized(block.attend(large), 5, 9, align_corners=False))
    if v3_fusion:
        assert_close(block(x), block.conv_fusion(torch.cat((local, out), 1)) + x)
    else:
        assert_close(block(x), block.conv_fusion(torch.cat((x, out), 1)))


@pytest.mark.parametrize("v3_fusion", [False, True])
def test_v2_resizes_its_input_between_the_centres(v3_fusion):
    """The input, and with ``exact_feature_size`` the output too."""
    options = {"transformer_dim": 16, "transformer_depth": 1, "patch_size": (2, 4), "v3_fusion": v3_fusion}
    block = randomise(SeparableMobileViTBlock(8, **options).double())
    exact = SeparableMobileViTBlock(8, exact_feature_size=True, **options).double().eval()
    exact.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 5, 9, dtype=torch.double)
    large = resized(x, 6, 12, align_corners=True)
    expected = block(large)
    assert expected.shape == large.shape
    assert_close(block(x), expected)
    assert_close(exact(x), resized(expected, 5, 9, align_corners=True))
    assert torch.equal(exact(large), expected)


@pytest.mark.parametrize("kind", [MobileViTBlock, SeparableMobileViTBlock])
def test_blocks_take_their_options(kind):
    """Those that no model of the table changes, too."""
    heads = {"num_heads": 2} if kind is MobileViTBlock else {}
    block = kind(8, transformer_dim=12, transformer_depth=3, mlp_ratio=5, **heads)
    assert len(block.transformer) == 3
    for layer in block.transformer:
        assert layer.mlp.fc1.weight.shape[:2] == layer.mlp.fc2.weight.shape[1::-1] == (60, 12)
        assert getattr(layer.attn, "num_heads", 2) == 2


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize(("momentum", "eps"), [(0.1, 1e-5), (0.03, 1e-3), (0.7, 0.1)])
def test_norms_have_their_own_momentum_and_epsilon(momentum, eps, with_gradients):
    """In training, joined with the activation or not: statistics and output by the formula (arXiv:1502.03167)."""
    layer = randomise(
        ConvNormAct(3, 4, 3, norm_layer=lambda channels: nn.BatchNorm2d(channels, momentum=momentum, eps=eps)).double()
    ).train()
    names = ("running_mean", "running_var", "num_batches_tracked")
    mean, var, count = (layer.bn.get_buffer(name).clone() for name in names)
    x = torch.randn(2, 3, 5, 4, dtype=torch.double)
    with torch.set_grad_enabled(with_gradients):
        out = layer(x)
    y = layer.conv(x)
    batch_mean = y.mean(dim=(0, 2, 3))
    batch_var = (y - batch_mean[:, None, None]).square().mean(dim=(0, 2, 3))
    normed = (y - batch_mean[:, None, None]) / (batch_var[:, None, None] + eps).sqrt()
    normed = normed * layer.bn.weight[:, None, None] + layer.bn.bias[:, None, None]
    assert_close(out, normed * normed.sigmoid())
    assert_close(layer.bn.running_mean, (1 - momentum) * mean + momentum * batch_mean)
    assert_close(layer.bn.running_var, (1 - momentum) * var + momentum * batch_var * 40 / 39)  # of 40 values, unbiased
    assert layer.bn.num_batches_tracked == count + 1

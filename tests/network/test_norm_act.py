"""The joint step of batch norm and SiLU against the two modules of PyTorch."""

import copy

import pytest
import timm
import torch
from kinds import NAMES
from torch import nn

from timm_mobilevit.network.layers import ConvNormAct
from timm_mobilevit.network.norm_act import norm_act


def is_joint(out: torch.Tensor) -> bool:
    return "BatchNormSiLU" in type(out.grad_fn).__name__


def pair(dtype: torch.dtype = torch.double) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """The same layer twice, the second kept from joining by a hook, and the same input twice."""
    torch.manual_seed(0)
    layer = ConvNormAct(3, 8, 3).to(dtype)
    plain = copy.deepcopy(layer)
    plain.bn.register_forward_hook(lambda *_: None)
    x = torch.randn(4, 3, 6, 5, dtype=dtype)
    return layer, plain, x.clone().requires_grad_(), x.clone().requires_grad_()


def test_equals_the_two_modules():
    layer, plain, x, y = pair()
    out, expected = layer(x), plain(y)
    assert is_joint(out)
    assert not is_joint(expected)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, y.grad)
    for (name, ours), theirs in zip(layer.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("shape", [(4, 8, 6, 5), (5, 16, 64, 72), (2, 8, 300, 300), (3, 4, 1, 7)])  # parts of all sizes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_every_size_and_layout(shape, layout):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(shape[1]).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(shape, dtype=torch.double) + 1).to(memory_format=layout).requires_grad_()
    grad = torch.randn(shape, dtype=torch.double)
    given = grad.clone()
    inputs = [x, norm.weight, norm.bias]
    expected = torch.autograd.grad(nn.functional.silu(norm(x)), inputs, grad)
    out = norm_act(norm, nn.SiLU(), x)
    assert is_joint(out)
    for ours, theirs in zip(torch.autograd.grad(out, inputs, grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(grad, given)


def test_differentiates_twice():
    layer, plain, x, y = pair()
    results = []
    for module, image in ((layer, x), (plain, y)):
        inputs = [image, *module.parameters()]
        first = torch.autograd.grad(module(image).square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_refuses_a_single_value_per_channel():
    layer, *_ = pair()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1, 3, 1, 1, dtype=torch.double, requires_grad=True))


def test_works_in_place_without_gradients():
    layer, plain, x, _ = pair()
    for mode in (True, False):
        layer.train(mode)
        plain.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), plain(x))
    seen = []
    layer.bn.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        out = layer(x)
    torch.testing.assert_close(out, torch.nn.functional.silu(seen[0]))  # what a hook has seen is left alone


def test_frozen_parameters_get_no_gradient():
    layer, _, x, _ = pair()
    layer.bn.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.bn.weight.grad is None
    assert layer.conv.weight.grad is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.eval(),
        lambda layer: layer.bn.eval(),
        lambda layer: setattr(layer, "bn", nn.BatchNorm2d(8, affine=False).double()),
        lambda layer: setattr(layer, "bn", nn.BatchNorm2d(8, track_running_stats=False).double()),
        lambda layer: setattr(layer.bn, "momentum", None),
        lambda layer: setattr(layer, "act", nn.ReLU()),
        lambda layer: layer.act.register_forward_pre_hook(lambda *_: None),
        lambda layer: setattr(layer.act, "forward", nn.functional.silu),
        lambda layer: setattr(layer.bn, "num_batches_tracked", None),
    ],
)
def test_leaves_everything_unusual_to_the_modules(change):
    layer, _, x, _ = pair()
    change(layer)
    out = layer(x)
    assert not is_joint(out)
    layer_alone = layer.act(copy.deepcopy(layer.bn)(layer.conv(x)))
    torch.testing.assert_close(out, layer_alone)


def test_keeps_one_map_less_for_the_backward_pass():
    layer, plain, x, y = pair()
    kept = []
    for module, image in ((layer, x), (plain, y)):
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = module(image)
        kept.append(sum(size for size in saved.values() if size == out.numel()))
    assert kept == [out.numel(), 2 * out.numel()]


@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_whole_models_train_alike(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).double()
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)
    x = torch.rand(2, 3, 64, 64, dtype=torch.double)
    for network in (model, plain):
        network(x).square().sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)


def test_trains_under_autocast_and_in_channels_last():
    model = timm.create_model("mobilevitv3_xxs", num_classes=3).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())

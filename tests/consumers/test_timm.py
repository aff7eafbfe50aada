"""Models that users modify: replaced, wrapped and patched modules, hooks on all modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


class Doubled(nn.Module):
    """Doubles what a layer returns, and shows none of the attributes of the layer."""

    def __init__(self, layer):
        super().__init__()
        self.hidden = layer

    def forward(self, x):
        return 2 * self.hidden(x)


def replace(model, kinds, make):
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, kinds):
                setattr(parent, key, make(child))


def train(model, images):
    """What a training step computes: the output, the gradients and the statistics."""
    out = model.train()(images)
    out.square().sum().backward()
    return out, [parameter.grad for parameter in model.parameters()], [b for b in model.buffers() if b.ndim]


def test_replaced_head(model):
    """The new head gets the last map: Identity, and a Sequential of pooling and a classifier."""
    images = torch.rand(2, 3, 64, 64)
    features = model.forward_features(images)
    model.head = nn.Identity()
    assert torch.equal(model(images), features)
    classifier = nn.Linear(model.num_features, 2)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    torch.testing.assert_close(model(images), classifier(features.mean(dim=(2, 3))))


def test_replaced_stem_convolution(model):
    """Nine bands are mixed to three colours first; the mixing learns."""
    bands, mix = torch.rand(2, 9, 64, 64, dtype=torch.double), nn.Conv2d(9, 3, 1).double()
    colours = mix(bands).detach().requires_grad_()
    expected = train(copy.deepcopy(model).double(), colours)
    model.double().stem.conv = nn.Sequential(mix, model.stem.conv)
    out, _, statistics = train(model, bands)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(statistics, expected[2])
    torch.testing.assert_close(mix.bias.grad, colours.grad.sum(dim=(0, 2, 3)))
    torch.testing.assert_close(mix.weight.grad[..., 0, 0], torch.einsum("bohw,bihw->oi", colours.grad, bands))


@pytest.mark.parametrize("layers", ["qkv", "all"])
def test_wrapped_layers(layers, model):
    """Linear layers and convolutions in a module without their attributes: those of the attention, and all of them."""
    images = torch.rand(2, 3, 64, 64, dtype=torch.double)
    wrapped = copy.deepcopy(model.double())
    chosen = {
        layer: key
        for key, layer in wrapped.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and (layers == "all" or "attn.qkv" in key)
    }
    for key in chosen.values():
        for parameter in model.get_submodule(key).parameters():
            parameter.data *= 2
    replace(wrapped, (nn.Conv2d, nn.Linear), lambda layer: Doubled(layer) if layer in chosen else layer)
    torch.testing.assert_close(wrapped(images), model(images))
    out, _, statistics = train(wrapped, images)
    gradients = [p.grad / 2 if ".hidden." in key else p.grad for key, p in wrapped.named_parameters()]
    torch.testing.assert_close((out, gradients, statistics), train(model, images))


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_global_hooks(mode, model):
    """A hook on all modules sees every layer, and what it keeps is what the layer computed from its input."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    model.double().train(mode == "training")
    plain, seen = copy.deepcopy(model), {}

    def record(module, args, out):
        seen[module] = (*args, out)

    handle = register_module_forward_hook(record)
    try:
        with torch.set_grad_enabled(mode == "training"):
            model(torch.rand(2, 3, 64, 64, dtype=torch.double))
    finally:
        handle.remove()
    assert {layer for layer in model.modules() if isinstance(layer, (*kinds, nn.SiLU))} <= seen.keys()
    for key, layer in plain.named_modules():
        if isinstance(layer, kinds):
            x, out = seen[model.get_submodule(key)]
            torch.testing.assert_close(out, layer(x))


def test_patched_forwards(model):
    """Another forward on each activation: the same as other activations."""
    images = torch.rand(2, 3, 64, 64, dtype=torch.double)
    patched, replaced = copy.deepcopy(model.double()), copy.deepcopy(model)
    for activation in patched.modules():
        if isinstance(activation, nn.SiLU):
            activation.forward = F.relu
    replace(replaced, nn.SiLU, lambda activation: nn.ReLU())
    with torch.no_grad():
        assert not torch.allclose(patched(images), model(images), rtol=0.01)
        torch.testing.assert_close(patched(images), replaced(images))
    torch.testing.assert_close(train(patched, images), train(replaced, images))


def test_batch_norms_without_counter(model):
    """The counter of batches, which only ``momentum=None`` needs, is taken away."""
    images = torch.rand(2, 3, 64, 64, dtype=torch.double)
    without = copy.deepcopy(model.double())
    for norm in without.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.num_batches_tracked = None
    torch.testing.assert_close(train(without, images), train(model, images))

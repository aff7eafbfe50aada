"""Layers of loralib in the place of PyTorch's."""

import copy

import loralib
import torch
from torch import nn


def adapted(layer, **kwargs):
    """A layer of loralib with the weights of a layer, and with random adapters."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        (kernel_size, _), convolution = layer.kernel_size, {"stride": layer.stride, "padding": layer.padding}
        new = loralib.Conv2d(layer.in_channels, layer.out_channels, kernel_size, bias=bias, **convolution, **kwargs)
        new.conv.load_state_dict(layer.state_dict())
    else:
        kind = loralib.MergedLinear if "enable_lora" in kwargs else loralib.Linear
        new = kind(layer.in_features, layer.out_features, bias=bias, **kwargs)
        new.load_state_dict(layer.state_dict(), strict=False)
    nn.init.normal_(new.lora_A)
    nn.init.normal_(new.lora_B)
    return new.to(layer.weight.dtype)


def compare(model, plain, merge):
    """Training and inference against the plain model, whose weights ``merge`` changes to what the adapters make."""
    images = torch.rand(2, 3, 64, 64, dtype=torch.double)
    loralib.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        before = plain(images)
        merge()
        assert not torch.allclose(plain(images), before, rtol=0.01)
    for training in (True, False):
        out = model.train(training)(images)
        torch.testing.assert_close(out, plain.train(training)(images))
        if training:
            out.square().sum().backward()
    learning = [key for key, parameter in model.named_parameters() if parameter.grad is not None]
    assert learning == [key for key, _ in model.named_parameters() if "lora_" in key]
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_stem(model):
    """``loralib.Conv2d``: only its adapter learns, in inference it is merged."""
    plain = copy.deepcopy(model.double())
    model.stem.conv = stem = adapted(model.stem.conv, r=4, lora_alpha=8)

    def merge():
        plain.stem.conv.weight += 2 * (stem.lora_B @ stem.lora_A).view(16, 3, 3, 3)

    compare(model, plain, merge)


def test_attention(model):
    """``loralib.MergedLinear`` on queries and values; ``loralib.Conv2d`` where attention has 1×1 convolutions."""
    plain = copy.deepcopy(model.double())
    layers = {}
    for key, attention in model.named_modules():
        if hasattr(attention, "qkv"):
            layers[f"{key}.qkv"] = attention.qkv = adapted(attention.qkv, r=2, enable_lora=[True, False, True])
        elif hasattr(attention, "qkv_proj"):
            layers[f"{key}.qkv_proj"] = attention.qkv_proj = adapted(attention.qkv_proj, r=2)

    def merge():
        for key, layer in layers.items():
            weight = plain.get_submodule(key).weight
            if key.endswith("qkv"):
                queries, _, values = weight.chunk(3)
                for part, a, b in zip((queries, values), layer.lora_A.chunk(2), layer.lora_B.chunk(2), strict=True):
                    part += b @ a / 2
            else:
                weight += (layer.lora_B @ layer.lora_A).view(weight.shape) / 2

    assert len(layers) == 9
    compare(model, plain, merge)


def test_classifier(model):
    """``loralib.Linear``."""
    plain = copy.deepcopy(model.double())
    model.head.fc = new = adapted(model.head.fc, r=4)

    def merge():
        plain.head.fc.weight += new.lora_B @ new.lora_A / 4

    compare(model, plain, merge)

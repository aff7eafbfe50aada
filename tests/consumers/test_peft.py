"""Adapters beside frozen layers."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.func import functional_call


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_adapters(dora, model):
    """On attention and MLP: only they learn, and merging them changes no output."""
    layers = r".*\.(qkv|qkv_proj|proj|out_proj|fc1|fc2)"
    config = peft.LoraConfig(target_modules=layers, modules_to_save=["head"], use_dora=dora, init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    images = torch.rand(2, 3, 64, 64)
    model.train()(images).mean().backward()
    learning = [key for key, parameter in model.named_parameters() if parameter.grad is not None]
    assert learning
    assert all("lora_" in key or "head" in key for key in learning)

    with torch.no_grad():
        before = model.eval()(images)
        torch.testing.assert_close(model.merge_and_unload()(images), before, rtol=1e-3, atol=1e-4)


def dense(weight, groups):
    """The weight of a convolution in groups as that of a convolution without them, [out, in, k, k]."""
    (out_chs, in_chs, *kernel_size) = weight.shape
    full = weight.new_zeros(groups, out_chs // groups, groups, in_chs, *kernel_size)
    full[range(groups), :, range(groups)] = weight.view(groups, -1, in_chs, *kernel_size)
    return full.reshape(out_chs, -1, *kernel_size)


@pytest.mark.parametrize("layers", ["stem", "pointwise", "depthwise"])
def test_adapted_convolutions(layers, model):
    """LoRA on convolutions: outputs and gradients are those of convolutions with the sum of both weights."""
    plain = copy.deepcopy(model.double())
    of_kind = {
        "stem": lambda layer: layer is model.stem.conv,
        "pointwise": lambda layer: layer.kernel_size == (1, 1),
        "depthwise": lambda layer: layer.groups > 1,
    }[layers]
    convolutions = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    ranks = {key: max(4, layer.groups) for key, layer in convolutions.items() if of_kind(layer)}
    config = peft.LoraConfig(target_modules=list(ranks), rank_pattern=ranks, lora_alpha=4, init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    for key in ranks:
        layer = plain.get_submodule(key)
        full = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        full.bias = layer.bias
        plain.set_submodule(key, full)

    def weights():
        for key, rank in ranks.items():
            adapted = model.get_submodule(f"base_model.model.{key}")
            a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
            product = torch.einsum("or,rikl->oikl", dense(b, adapted.base_layer.groups)[..., 0, 0], a)
            yield f"{key}.weight", dense(adapted.base_layer.weight, adapted.base_layer.groups) + 4 / rank * product

    images = torch.rand(2, 3, 64, 64, dtype=torch.double)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learning) == 2 * len(ranks)
    for training in (True, False):
        out = model.train(training)(images)
        expected = functional_call(plain.train(training), dict(weights()), images)
        torch.testing.assert_close(out, expected)
        gradients = [torch.autograd.grad(logits.square().sum(), learning) for logits in (out, expected)]
        torch.testing.assert_close(*gradients)

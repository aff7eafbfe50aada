"""Adapters beside frozen layers."""

import peft
import pytest
import torch


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

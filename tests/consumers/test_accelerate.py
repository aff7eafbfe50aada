"""Weights that are in memory only while a layer runs."""

import copy

import accelerate
import pytest
import torch


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload", "dispatch_model"])
def test_offloaded(how, model, tmp_path):
    """Inference, and a training step: outputs, gradients and statistics are those of the model in memory."""
    plain = copy.deepcopy(model.double())
    offloaded = [model]
    if how == "cpu_offload":
        accelerate.cpu_offload(model)
    elif how == "disk_offload":
        accelerate.disk_offload(model, tmp_path)
    else:
        places = {key: "cpu" if key == "stages" else "disk" for key, _ in model.named_children()}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
        offloaded = [model.stem, model.head]
    assert all(parameter.is_meta for part in offloaded for parameter in part.parameters())

    images = torch.rand(2, 3, 64, 64, dtype=torch.double, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
    steps = []
    for network in (model, plain):
        images.grad, out = None, network.train()(images)
        out.square().sum().backward()
        kept = [parameter.grad for parameter in network.stages.parameters()] if how == "dispatch_model" else []
        steps.append([out, images.grad, *kept, *network.buffers()])
    torch.testing.assert_close(*steps)

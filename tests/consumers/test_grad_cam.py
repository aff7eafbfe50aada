"""Which pixels a class is seen in."""

import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget


@pytest.mark.parametrize("method", ["GradCAM", "EigenCAM", "LayerCAM", "HiResCAM"])
def test_heat_map(method, model):
    """One value per pixel, from the last stage."""
    with getattr(pytorch_grad_cam, method)(model, target_layers=[model.stages[-1]]) as cam:
        heat = cam(torch.rand(2, 3, 96, 64), targets=[ClassifierOutputTarget(3), ClassifierOutputTarget(5)])
    assert heat.shape == (2, 96, 64)
    assert 0 <= heat.min() <= heat.max() <= 1

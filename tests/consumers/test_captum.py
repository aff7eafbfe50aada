"""What a score is made of."""

import torch
from captum.attr import IntegratedGradients, LayerGradCam


def test_integrated_gradients(model):
    """Attributions add up to the difference of the scores."""
    images = torch.rand(2, 3, 64, 64)
    baselines = 0.95 * images
    attributions = IntegratedGradients(model).attribute(images, baselines, target=3, n_steps=100)
    difference = (model(images) - model(baselines))[:, 3]
    torch.testing.assert_close(attributions.sum(dim=(1, 2, 3)).float(), difference, rtol=0.05, atol=1e-2)


def test_layer_grad_cam(model):
    """LayerGradCam of the last stage."""
    heat = LayerGradCam(model, model.stages[-1]).attribute(torch.rand(2, 3, 64, 64), target=3)
    assert heat.shape == (2, 1, 2, 2)

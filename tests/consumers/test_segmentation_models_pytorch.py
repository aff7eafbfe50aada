"""Decoders over an encoder of timm."""

import pytest
import segmentation_models_pytorch as smp
import torch

# DPT alone is left out: it takes vision transformers with tokens, and no network with maps of several sizes.
DECODERS = [arch for arch in smp.MODEL_ARCHITECTURES_MAPPING if arch != "dpt"]


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder(decoder, name):
    """Trains at 224 and 256 pixels."""
    options = {"exact_feature_size": True} if name.startswith(("mobilevitv2_0_", "mobilevitv3")) else {}
    model = smp.create_model(decoder, f"tu-{name}", encoder_weights=None, classes=2, **options)
    for size in (224, 256):
        masks = model(torch.rand(2, 3, size, size))
        smp.losses.DiceLoss("multiclass")(masks, torch.randint(2, (2, size, size))).backward()
        assert masks.shape == (2, 2, size, size)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)

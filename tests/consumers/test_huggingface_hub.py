"""Mixins that save and load."""

import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class Classifier(nn.Module, PyTorchModelHubMixin):
    def __init__(self, name, num_classes):
        super().__init__()
        self.model = timm.create_model(name, num_classes=num_classes)

    def forward(self, images):
        return self.model(images)


def test_mixin(name, tmp_path):
    """PyTorchModelHubMixin: the folder has the weights and the arguments."""
    model = Classifier(name, num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    model(images).mean().backward()
    model.save_pretrained(tmp_path)
    assert torch.equal(Classifier.from_pretrained(tmp_path)(images), model(images))


def test_timm_folder(name, tmp_path):
    """timm.models.save_for_hf, and the folder by name: ``local-dir:…``."""
    model = timm.create_model(name, num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images), model(images))

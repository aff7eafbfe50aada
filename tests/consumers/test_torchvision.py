"""Detection over the maps of a model."""

from collections import OrderedDict

import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class Pyramid(nn.Module):
    def __init__(self, name, out_channels=64):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images):
        return self.fpn(OrderedDict((str(level), features) for level, features in enumerate(self.body(images))))


def test_faster_rcnn(name):
    """Four losses with gradients in training, boxes in evaluation."""
    model = FasterRCNN(Pyramid(name), num_classes=3, min_size=224, max_size=224)
    images = [torch.rand(3, 200, 160), torch.rand(3, 224, 224)]
    boxes = torch.tensor([[20.0, 20.0, 90.0, 120.0]])
    losses = model(images, [{"boxes": boxes, "labels": torch.tensor([1])} for _ in images])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(parameter.grad is not None for parameter in model.backbone.body.parameters())
    assert set(model.eval()(images)[0]) == {"boxes", "labels", "scores"}

"""The table of layers."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary


def test_summary(model):
    """All parameters, the shape of the output, and the multiply-accumulates of convolutions."""
    statistics = summary(model, input_size=(1, 3, 256, 256), verbose=0)
    layers = statistics.summary_list
    assert statistics.total_params == sum(parameter.numel() for parameter in model.parameters())
    assert layers[0].output_size == [1, 10]

    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 256, 256))
    macs = counter.get_flop_counts()["Global"][torch.ops.aten.convolution] / 2
    assert sum(layer.macs for layer in layers if layer.class_name == "Conv2d") == pytest.approx(macs, rel=0.01)

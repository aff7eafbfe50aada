"""Weights under which every parameter and every statistic of a network counts.

A new model has norms that change nothing, biases of 0, attention that is almost uniform and depthwise convolutions so
small that its outputs hardly depend on the image: what loses, swaps or misplaces one of them computes the same numbers.
"""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def randomise(model: Model) -> Model:
    """Give every parameter and statistic of a network, of any package, random values, and set evaluation mode.

    Matrices and kernels are drawn so that what a layer returns is about as large as what it gets.
    """
    for module in model.modules():
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for name, tensor in tensors.items():
            if name == "running_var" or (name.endswith("weight") and tensor.ndim == 1):
                nn.init.uniform_(tensor, 0.5, 1.5)
            elif name == "running_mean" or name.endswith("bias"):
                nn.init.normal_(tensor, std=0.2)
            elif name == "num_batches_tracked":
                tensor.random_(1, 1000)
            elif name.endswith("weight"):
                nn.init.normal_(tensor, std=1.4 * tensor[0].numel() ** -0.5)
    return model.eval()

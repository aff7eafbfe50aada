"""What comparisons with other implementations of v1 and v2 share."""

import timm
import torch

from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")
V1, V2 = (
    sorted((name for name in NAMES if VARIANTS[name].block == kind), key=lambda name: VARIANTS[name].widths)
    for kind in ("v1", "v2")
)


def randomise(model):
    """Statistics and affine parameters of norms start at 0 and 1, where mix-ups would not show."""
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.GroupNorm, torch.nn.LayerNorm)):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()

"""Small models with trained-looking weights, and ONNX Runtime: for the tests of exported files."""

from dataclasses import replace

import timm
import torch
from torch import nn

from timm_mobilevit import MobileViT
from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")
# The smallest variant of each kind of block.
KINDS = [
    min((name for name in NAMES if VARIANTS[name].block == kind), key=lambda name: VARIANTS[name].widths)
    for kind in sorted({variant.block for variant in VARIANTS.values()})
]


def run_file(path, images):
    """Outputs by name, as arrays."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(
        zip((o.name for o in session.get_outputs()), session.run(None, {"images": images.numpy()}), strict=True)
    )


def shallow(name, num_classes=10):
    """A model with every kind of layer that the variant has, once per stage: exporting takes a third of the time."""
    variant = replace(VARIANTS[name], stage2_depth=1, transformer_depths=(1, 1, 1))
    return trained_looking(MobileViT(variant, num_classes=num_classes))


def trained_looking(model):
    """Give norms and biases something to say, as those of a new model do not."""
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.ndim == 1:
            nn.init.normal_(tensor, 1.0 if key.endswith("weight") else 0.0, 0.1)
    return model.eval()


def close(actual, expected):
    """Within 1e-4 of the standard deviation."""
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=1e-4 * expected.std().item())

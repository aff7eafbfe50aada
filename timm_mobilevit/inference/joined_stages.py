"""The stages of a network as two sequences, with adjacent 1×1 convolutions multiplied into one."""

from itertools import pairwise, takewhile

import torch
from torch import Tensor, nn

from ..network.blocks import InvertedResidual, SeparableMobileViTBlock
from ..network.layers import ConvNormAct
from ..network.modes import is_unmodified
from .fold_transformers import is_pointwise, wide


class JoinedStages(nn.Module):
    """Stages for inference, which do not compute the map after each stage.

    The stages of v2 end with a 1×1 convolution without activation, and the next ones begin with another: one
    convolution with the product of the two matrices replaces them. That saves an eighth of the multiply-accumulates of
    ``mobilevitv2_1_0`` (``benchmarks.complexity --optimized``). The stages before the first transformer become one
    sequence.

    Args:
        stages: The stages, their norms folded into the convolutions. They are changed.

    Shape:
        Input and output as those of ``stages``.

    Example:
        >>> from timm_mobilevit.inference.optimize import fold_norms
        >>> blocks = [InvertedResidual(8, 16, expand_ratio=2), InvertedResidual(16, 24, expand_ratio=2, stride=2)]
        >>> stages = nn.Sequential(*(nn.Sequential(block) for block in blocks)).eval()
        >>> fold_norms(stages)
        >>> x = torch.rand(1, 8, 32, 32)
        >>> expected = stages(x)
        >>> torch.allclose(JoinedStages(stages)(x), expected, atol=1e-5)
        True
    """

    def __init__(self, stages: nn.Sequential) -> None:
        super().__init__()
        for before, after in pairwise(stages):
            if len(before) and len(after):  # type: ignore[arg-type]
                _join(before[-1], after[0])  # type: ignore[index]
        early = list(takewhile(all_inverted_residuals, stages))
        self.early = nn.Sequential(*(block for stage in early for block in stage.children()))
        self.late = stages[len(early) :]  # the stages keep their names

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of the first stage to the output of the last."""
        return self.late(self.early(x))  # type: ignore[no-any-return]


def all_inverted_residuals(stage: nn.Module) -> bool:
    """Return whether a stage has blocks, and none with a transformer."""
    blocks = list(stage.children())
    return len(blocks) > 0 and all(isinstance(block, InvertedResidual) for block in blocks)


def _join(before: nn.Module, after: nn.Module) -> None:
    """Replace the last convolution of a block and the first of the next by their product, if that saves work."""
    if type(before) is InvertedResidual and not before.has_shortcut and is_unmodified(before.drop_path, nn.Identity):
        name = "conv3_1x1"
    elif type(before) is SeparableMobileViTBlock and not before.v3_fusion:
        name = "conv_proj"  # resizing the map before the product equals resizing it after: both are linear
    else:
        return
    if type(after) is not InvertedResidual or after.has_shortcut:
        return
    layer = before.get_submodule(name)
    inner, outer = _lone_conv(layer), _lone_conv(after.conv1_1x1)
    if inner is None or outer is None or not is_unmodified(layer.act, nn.Identity):  # type: ignore[arg-type]
        return
    if inner.in_channels * outer.out_channels > inner.weight.numel() + outer.weight.numel():
        return
    setattr(before, name, nn.Identity())
    after.conv1_1x1.conv = _product(inner, outer)  # type: ignore[assignment]


def _lone_conv(layer: nn.Module) -> nn.Conv2d | None:
    """Return the convolution of a layer without a norm after it."""
    if type(layer) is not ConvNormAct or not is_unmodified(layer.bn, nn.Identity):
        return None
    conv: nn.Module = layer.conv
    return conv if is_pointwise(conv) else None


def _product(inner: nn.Conv2d, outer: nn.Conv2d) -> nn.Conv2d:
    """Return one 1×1 convolution that equals two in sequence."""
    weight = outer.weight
    conv = nn.Conv2d(inner.in_channels, outer.out_channels, 1, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        matrix = wide(weight).flatten(1)
        conv.weight.copy_((matrix @ wide(inner.weight).flatten(1))[:, :, None, None])
        conv.bias.copy_(matrix @ wide(inner.bias) + wide(outer.bias))  # type: ignore[union-attr, arg-type]
    return conv.requires_grad_(False)

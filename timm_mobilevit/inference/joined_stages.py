"""The stages of a network run as one, and with one 1×1 convolution where two meet with nothing in between."""

import copy
from collections.abc import Iterator
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..network.blocks import InvertedResidual, SeparableMobileViTBlock
from ..network.layers import ConvNormAct


class JoinedStages(nn.Module):
    """Stages for inference, which no longer stop to compute the map of each.

    The stages of v2 end with a 1×1 convolution without activation, and the next ones begin with another: the product of
    the two matrices is a smaller one. That leaves out an eighth of the multiply-accumulates of ``mobilevitv2_1_0``
    (``benchmarks.complexity --optimized``). The stages in front of the first transformer stand in one sequence.

    Args:
        stages: The stages, their norms folded into the convolutions. They stay as they are, and iterating and indexing
            give them, for those who need the map of each.

    Shape:
        Input and output as those of ``stages``.

    Example:
        >>> from timm_mobilevit.inference.optimize import fold_norms
        >>> blocks = [InvertedResidual(8, 16, expand_ratio=2), InvertedResidual(16, 24, expand_ratio=2, stride=2)]
        >>> stages = nn.Sequential(*(nn.Sequential(block) for block in blocks)).eval()
        >>> fold_norms(stages)
        >>> joined, x = JoinedStages(stages), torch.rand(1, 8, 32, 32)
        >>> torch.allclose(joined(x), stages(x), atol=1e-5), len(joined)
        (True, 2)
    """

    def __init__(self, stages: nn.Sequential) -> None:
        super().__init__()
        self.stages = stages
        # Blocks of their own with the same parameters; only the products are new.
        twins: Any = copy.deepcopy(stages, {id(parameter): parameter for parameter in stages.parameters()})
        for before, after in pairwise(twins):
            _join(before[-1], after[0])
        early = list(takewhile(all_inverted_residuals, twins))
        self.early = nn.Sequential(*(block for stage in early for block in stage))
        self.late = twins[len(early) :]

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.stages)

    def __getitem__(self, index: int) -> nn.Module:
        return self.stages[index]

    def forward(self, x: Tensor) -> Tensor:
        """Map what the first stage takes to what the last returns."""
        return self.late(self.early(x))  # type: ignore[no-any-return]


def all_inverted_residuals(stage: nn.Sequential) -> bool:
    """Whether a stage has blocks, and none with a transformer."""
    return len(stage) > 0 and all(isinstance(block, InvertedResidual) for block in stage)


def _join(before: nn.Module, after: nn.Module) -> None:
    """Move the last convolution of a block into the first of the next, if it may be moved and that saves work."""
    if isinstance(before, InvertedResidual) and not before.has_shortcut:
        name = "conv3_1x1"
    elif isinstance(before, SeparableMobileViTBlock) and not before.v3_fusion:
        name = "conv_proj"  # a map that is brought back to size after it can be so before: both are linear
    else:
        return
    if not isinstance(after, InvertedResidual) or after.has_shortcut:
        return
    inner, outer = _lone_conv(getattr(before, name)), _lone_conv(after.conv1_1x1)
    if inner is None or outer is None:
        return
    if inner.in_channels * outer.out_channels > inner.weight.numel() + outer.weight.numel():
        return
    setattr(before, name, nn.Identity())
    after.conv1_1x1.conv = _product(inner, outer)


def _lone_conv(layer: nn.Module) -> nn.Conv2d | None:
    """The convolution of a layer without a norm after it."""
    if isinstance(layer, ConvNormAct) and type(layer.conv) is nn.Conv2d and isinstance(layer.bn, nn.Identity):
        return layer.conv
    return None


def _product(inner: nn.Conv2d, outer: nn.Conv2d) -> nn.Conv2d:
    """One 1×1 convolution that does what two do one after the other."""
    weight = outer.weight
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
    conv = nn.Conv2d(inner.in_channels, outer.out_channels, 1, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        matrix = weight.to(wide).flatten(1)
        conv.weight.copy_((matrix @ inner.weight.to(wide).flatten(1))[:, :, None, None])
        conv.bias.copy_(matrix @ inner.bias.to(wide) + outer.bias.to(wide))  # type: ignore[union-attr]  # a folded norm
    return conv.requires_grad_(False)

"""The stages of a network as one sequence, with adjacent 1×1 convolutions multiplied into one."""

import copy
from collections.abc import Iterator
from itertools import chain, pairwise, takewhile

import torch
from torch import Tensor, nn

from ..network.blocks import InvertedResidual, SeparableMobileViTBlock
from ..network.layers import ConvNormAct


class JoinedStages(nn.Module):
    """Stages for inference, which do not compute the map after each stage.

    The stages of v2 end with a 1×1 convolution without activation, and the next ones begin with another: one
    convolution with the product of the two matrices replaces them. That saves an eighth of the multiply-accumulates of
    ``mobilevitv2_1_0`` (``benchmarks.complexity --optimized``). The stages before the first transformer become one
    sequence.

    Args:
        stages: The stages, their norms folded into the convolutions. They are not changed; iterating and indexing
            return them, for callers that need the map of each.

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
        # The blocks themselves, except those whose first or last convolution is joined: these are new blocks around the
        # same layers, so replacing or quantising a layer changes both. Only the products are new.
        joined: list[list[nn.Module]] = [list(stage.children()) for stage in stages]
        for before, after in pairwise(joined):
            before[-1], after[0] = _join(before[-1], after[0])
        early = len(list(takewhile(all_inverted_residuals, stages)))
        self.early = nn.Sequential(*chain(*joined[:early]))
        self.late = nn.Sequential(*(nn.Sequential(*blocks) for blocks in joined[early:]))

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.stages)

    def __getitem__(self, index: int) -> nn.Module:
        return self.stages[index]

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of the first stage to the output of the last."""
        return self.late(self.early(x))  # type: ignore[no-any-return]


def all_inverted_residuals(stage: nn.Module) -> bool:
    """Whether a stage has blocks, and none with a transformer."""
    blocks = list(stage.children())
    return len(blocks) > 0 and all(isinstance(block, InvertedResidual) for block in blocks)


def _join(before: nn.Module, after: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Multiply the last convolution of a block into the first of the next, if that is exact and saves work."""
    if isinstance(before, InvertedResidual) and not before.has_shortcut:
        name = "conv3_1x1"
    elif isinstance(before, SeparableMobileViTBlock) and not before.v3_fusion:
        name = "conv_proj"  # a map that is resized after it can be resized before: both are linear
    else:
        return before, after
    if not isinstance(after, InvertedResidual) or after.has_shortcut:
        return before, after
    inner, outer = _lone_conv(getattr(before, name)), _lone_conv(after.conv1_1x1)
    if inner is None or outer is None:
        return before, after
    if inner.in_channels * outer.out_channels > inner.weight.numel() + outer.weight.numel():
        return before, after
    first = _with(after.conv1_1x1, "conv", _product(inner, outer))
    return _with(before, name, nn.Identity()), _with(after, "conv1_1x1", first)


def _with(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """A module with another child of that name; the other children are in both."""
    twin = copy.copy(module)
    twin.__dict__ = {key: copy.copy(value) for key, value in module.__dict__.items()}  # its own lists of hooks
    setattr(twin, name, child)
    return twin


def _lone_conv(layer: nn.Module) -> nn.Conv2d | None:
    """The convolution of a layer without a norm after it."""
    if isinstance(layer, ConvNormAct) and type(layer.conv) is nn.Conv2d and isinstance(layer.bn, nn.Identity):
        return layer.conv
    return None


def _product(inner: nn.Conv2d, outer: nn.Conv2d) -> nn.Conv2d:
    """One 1×1 convolution that equals two in sequence."""
    weight = outer.weight
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    conv = nn.Conv2d(inner.in_channels, outer.out_channels, 1, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        matrix = weight.to(wide).flatten(1)
        conv.weight.copy_((matrix @ inner.weight.to(wide).flatten(1))[:, :, None, None])
        conv.bias.copy_(matrix @ inner.bias.to(wide) + outer.bias.to(wide))  # type: ignore[union-attr]  # a folded norm
    return conv.requires_grad_(False)

"""The stages of a network as one sequence, with adjacent 1×1 convolutions multiplied into one."""

import copy
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice, takewhile

import torch
from torch import Tensor, nn

from ..network.blocks import InvertedResidual, SeparableMobileViTBlock
from ..network.layers import ConvNormAct
from ..network.modes import is_unmodified
from .fold_transformers import is_pointwise


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
        blocks: list[nn.Module] = [block for stage in stages for block in stage.children()]
        self.lengths = [len(list(stage.children())) for stage in stages]
        # Every layer is in the tree of modules once, for passes that replace or quantise what they find, such as
        # torchao's, fail at what they have changed already. A joined block is a shell of its own around the same
        # layers; these are the layers that only a single stage has, and where in which block they belong.
        self.places: list[tuple[int, str]] = []
        self.single = nn.ModuleList()
        for last in [end - 1 for end in accumulate(self.lengths)][:-1]:
            before, after = blocks[last], blocks[last + 1]
            if (joint := _joint(before, after)) is not None:
                name, product = joint
                first = after.get_submodule("conv1_1x1")
                self.places += [(last, name), (last + 1, "conv1_1x1")]
                self.single += [before.get_submodule(name), first]
                blocks[last] = _with(before, name, nn.Identity())
                blocks[last + 1] = _with(after, "conv1_1x1", _with(first, "conv", product))
        joined = self._by_stage(blocks)
        self.number_early = len(list(takewhile(all_inverted_residuals, stages)))
        self.early = nn.Sequential(*chain(*joined[: self.number_early]))
        self.late = nn.Sequential(*joined[self.number_early :])

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = [*self.early, *chain(*self.late)]
        for (index, name), layer in zip(self.places, self.single, strict=True):
            blocks[index] = _with(blocks[index], name, layer)
        for number, stage in enumerate(self._by_stage(blocks)):
            as_early = number < self.number_early and not isinstance(self.early, nn.Sequential)
            yield _with(self.early, "module", stage) if as_early else stage  # image by image, where those are

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[index]

    def _by_stage(self, blocks: Iterable[nn.Module]) -> list[nn.Sequential]:
        rest = iter(blocks)
        return [nn.Sequential(*islice(rest, length)) for length in self.lengths]

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of the first stage to the output of the last."""
        return self.late(self.early(x))  # type: ignore[no-any-return]


def all_inverted_residuals(stage: nn.Module) -> bool:
    """Whether a stage has blocks, and none with a transformer."""
    blocks = list(stage.children())
    return len(blocks) > 0 and all(isinstance(block, InvertedResidual) for block in blocks)


def _joint(before: nn.Module, after: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The name of the last convolution of a block and its product with the first of the next, if that saves work."""
    if type(before) is InvertedResidual and not before.has_shortcut and is_unmodified(before.drop_path, nn.Identity):
        name = "conv3_1x1"
    elif type(before) is SeparableMobileViTBlock and not before.v3_fusion:
        name = "conv_proj"  # a map that is brought back to size after it can be so before: both are linear
    else:
        return None
    if type(after) is not InvertedResidual or after.has_shortcut:
        return None
    layer = before.get_submodule(name)
    inner, outer = _lone_conv(layer), _lone_conv(after.conv1_1x1)
    if inner is None or outer is None or not is_unmodified(layer.act, nn.Identity):  # type: ignore[arg-type]
        return None
    if inner.in_channels * outer.out_channels > inner.weight.numel() + outer.weight.numel():
        return None
    return name, _product(inner, outer)


def _with(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """A module with another child of that name; the other children are in both."""
    twin = copy.copy(module)
    twin.__dict__ = {key: copy.copy(value) for key, value in module.__dict__.items()}  # its own lists of hooks
    setattr(twin, name, child)
    return twin


def _lone_conv(layer: nn.Module) -> nn.Conv2d | None:
    """The convolution of a layer without a norm after it."""
    if type(layer) is not ConvNormAct or not is_unmodified(layer.bn, nn.Identity):
        return None
    conv: nn.Module = layer.conv
    return conv if is_pointwise(conv) else None


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

"""What the transformers of a MobileViT attend to, as numbers and as pictures.

Attention never mixes pixel phases (the places inside a patch), so each phase has attention weights of its own. The
weights are computed again from the inputs of the attention modules: the network itself never holds them, because fused
attention does not return them.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn

from ..network.attention import MultiHeadAttention, SeparableAttention
from ..network.blocks import MobileViTBlock, SeparableMobileViTBlock
from ..network.patches import fold_phases, phases_to_rows, rows_to_phases

_FIRST_STAGE = 3  # stages 1 and 2 have no transformer
_CAPTION_HEIGHT = 18
_GAP = 4


@dataclass(frozen=True)
class AttentionMap:
    """The attention that the pixels of a map get in one transformer layer.

    Attributes:
        stage: Number of the stage, from 3.
        layer: Number of the layer in its stage, from 1.
        patch: Height and width of a patch, in pixels of the map.
        scores: Map [B, heads, H, W], one head for separable attention. The scores of the pixels of a phase add up to 1.
    """

    stage: int
    layer: int
    patch: tuple[int, int]
    scores: Tensor

    def relative(self) -> Tensor:
        """Mean over the heads, as a multiple of what even attention would give: [B, H, W], 1 is even."""
        patches = self.scores.shape[-2] * self.scores.shape[-1] / math.prod(self.patch)
        return self.scores.mean(dim=1) * patches

    def phases(self) -> Tensor:
        """The same, one map for each phase: [B, P, H / patch height, W / patch width]."""
        patch_h, patch_w = self.patch
        relative = self.relative()
        rows = phases_to_rows(relative[:, None], patch_h, patch_w)[:, 0]  # [B, P, N]
        return rows.reshape(*rows.shape[:2], relative.shape[-2] // patch_h, relative.shape[-1] // patch_w)


def attention_weights(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """Attention weights of a multi-head attention module.

    Args:
        module: The module.
        x: Its input [batch, N, dim].

    Returns:
        Weights [batch, heads, N, N]: how much each token (third dimension) takes from each other (last). Rows add up
        to 1.

    Example:
        >>> attention_weights(MultiHeadAttention(64), torch.zeros(2, 16, 64))[0, 0, 0, 0].item()
        0.0625
    """
    batch, length, dim = x.shape
    head_dim = dim // module.num_heads
    qkv = module.qkv(x).reshape(batch, length, 3, module.num_heads, head_dim)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, N, d / heads]
    return ((query * head_dim**-0.5) @ key.transpose(-2, -1)).softmax(-1)  # type: ignore[no-any-return]


def context_scores(module: SeparableAttention, x: Tensor, patch_h: int, patch_w: int) -> Tensor:
    """Context scores of a separable attention module.

    Args:
        module: The module.
        x: Its input [B, dim, H, W].
        patch_h: Height of a patch.
        patch_w: Width of a patch.

    Returns:
        Map [B, H, W]: the weight of each pixel in the context vector of its phase. Those of a phase add up to 1.

    Example:
        >>> context_scores(SeparableAttention(64), torch.zeros(1, 64, 8, 8), 2, 2)[0, 0, 0].item()
        0.0625
    """
    query = module.qkv_proj(x)[:, :1]
    rows = phases_to_rows(query, patch_h, patch_w).softmax(dim=-1)  # [B, 1, P, N]
    return rows_to_phases(rows, patch_h, patch_w, x.shape[-2], x.shape[-1])[:, 0]


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> list[AttentionMap]:
    """Run a model, and tell which pixels its transformers attend to.

    For multi-head attention (v1, v3-S, -XS and -XXS) the score of a pixel is the attention that it gets, averaged over
    all pixels that attend. For separable attention (v2, v3-1.0, -0.75 and -0.5) it is the pixel's context score.

    Args:
        model: A model of this package in evaluation mode, or a network that contains one.
        images: Its input [B, C, H, W].

    Returns:
        One map per transformer layer, in order.

    Raises:
        ValueError: If the model has no MobileViT block, or is in training mode.

    Example:
        >>> import timm, timm_mobilevit
        >>> model = timm.create_model("mobilevitv3_xxs").eval()
        >>> maps = attention_maps(model, torch.rand(1, 3, 128, 128))
        >>> [(m.stage, m.layer, tuple(m.scores.shape)) for m in maps][:3]
        [(3, 1, (1, 4, 16, 16)), (3, 2, (1, 4, 16, 16)), (4, 1, (1, 4, 8, 8))]
    """
    blocks = [m for m in model.modules() if isinstance(m, (MobileViTBlock, SeparableMobileViTBlock))]
    if not blocks:
        raise ValueError(f"expected a MobileViT of timm_mobilevit or a network with one, got {type(model).__name__}")
    if model.training:
        raise ValueError("expected a model in evaluation mode; call model.eval() first")
    maps: list[AttentionMap] = []
    handles = []
    stages = itertools.count(_FIRST_STAGE)  # counted as they run: an optimized network also holds blocks that do not
    for block in blocks:
        recorder = _Recorder(maps, stages, block)
        handles.append(block.register_forward_pre_hook(recorder.enter))
        for module in block.modules():
            if isinstance(module, (MultiHeadAttention, SeparableAttention)):
                handles.append(module.register_forward_pre_hook(recorder.record))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return maps


class _Recorder:
    """Adds the maps of one block while it runs."""

    def __init__(
        self, maps: list[AttentionMap], stages: Iterator[int], block: MobileViTBlock | SeparableMobileViTBlock
    ) -> None:
        self.maps = maps
        self.stages = stages
        self.stage = 0
        self.patch = (block.patch_h, block.patch_w)
        self.size = (0, 0)
        self.layer = 0

    def enter(self, module: nn.Module, args: tuple[Tensor]) -> None:
        # The block enlarges its map to the next multiple of the patch.
        height, width = args[0].shape[-2:]
        patch_h, patch_w = self.patch
        self.size = (math.ceil(height / patch_h) * patch_h, math.ceil(width / patch_w) * patch_w)
        self.stage = next(self.stages)
        self.layer = 0

    def record(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, SeparableAttention):
            scores = context_scores(module, args[0], *self.patch)[:, None]
        else:
            assert isinstance(module, MultiHeadAttention)
            received = attention_weights(module, args[0]).mean(dim=-2)  # [P·B, heads, N]
            scores = fold_phases(received.transpose(1, 2), *self.patch, *self.size).permute(0, 3, 1, 2)
        self.layer += 1
        self.maps.append(AttentionMap(self.stage, self.layer, self.patch, scores))


def overlay(image: Image.Image, relative: Tensor, *, opacity: float = 0.6) -> Image.Image:
    """Lay a map of attention over an image.

    Blue is less than even attention, white is even, red is more. The scale is the same for every map, so pictures can
    be compared: a multiple r of even attention stands at r / (1 + r) of the way from blue to red.

    Args:
        image: The image that the model saw, of any mode.
        relative: Map [H, W] of multiples of even attention, of any size.
        opacity: Share of the colours over the grey image, in [0, 1].

    Returns:
        RGB image of the size of ``image``.

    Example:
        >>> picture = overlay(Image.new("L", (32, 32)), torch.ones(4, 4), opacity=1.0)
        >>> picture.size, picture.getpixel((16, 16))
        ((32, 32), (247, 247, 247))
    """
    levels = (255 * relative / (1 + relative)).byte().cpu().numpy()
    heat = Image.fromarray(levels).resize(image.size, Image.Resampling.BILINEAR)
    colours = ImageOps.colorize(heat, black="#2166ac", mid="#f7f7f7", white="#b2182b")
    return Image.blend(image.convert("L").convert("RGB"), colours, opacity)


def draw_stage(image: Image.Image, maps: Sequence[AttentionMap], *, phases: bool = False) -> Image.Image:
    """Draw the attention of one stage: the image, then an overlay for each of its layers.

    Args:
        image: The image that the model saw, the first of the batch.
        maps: The maps of the stage.
        phases: Whether to add a row for each phase by itself.

    Returns:
        RGB image with captions.

    Example:
        >>> maps = [AttentionMap(3, layer, (2, 2), torch.full((1, 4, 8, 8), 1 / 16)) for layer in (1, 2)]
        >>> draw_stage(Image.new("RGB", (64, 64)), maps).size
        (204, 86)
    """
    rows = [[("image", image.convert("RGB"))]]
    rows[0] += [(f"layer {m.layer}, all phases", overlay(image, m.relative()[0])) for m in maps]
    for phase in range(math.prod(maps[0].patch) if phases else 0):
        y, x = divmod(phase, maps[0].patch[1])
        rows.append([("", Image.new("RGB", image.size, "white"))])
        rows[-1] += [(f"layer {m.layer}, phase {y},{x}", overlay(image, m.phases()[0, phase])) for m in maps]
    width, height = image.width + _GAP, image.height + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, panels in enumerate(rows):
        for column, (caption, panel) in enumerate(panels):
            pen.text((column * width, row * height), caption, fill="black")
            sheet.paste(panel, (column * width, row * height + _CAPTION_HEIGHT))
    return sheet

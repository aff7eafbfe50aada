"""What the transformers of a MobileViT attend to, as numbers and as pictures.

Attention never mixes pixel phases (the places inside a patch), so each phase has its own attention weights. They are
the inputs of the ``attn_drop`` modules; fused attention, which does not return them, is switched off meanwhile.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .network.attention import MultiHeadAttention, SeparableAttention
from .network.blocks import MobileViTBlock, SeparableMobileViTBlock
from .network.patches import fold_phases, phases_to_rows, rows_to_phases

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
        """Return the mean over the heads as a multiple of uniform attention: [B, H, W], 1 is uniform."""
        patches = self.scores.shape[-2] * self.scores.shape[-1] / math.prod(self.patch)
        return self.scores.mean(dim=1) * patches

    def phases(self) -> Tensor:
        """Return these multiples, one map for each phase: [B, P, H / patch height, W / patch width]."""
        patch_h, patch_w = self.patch
        relative = self.relative()
        rows = phases_to_rows(relative[:, None], patch_h, patch_w)[:, 0]  # [B, P, N]
        return rows.reshape(*rows.shape[:2], relative.shape[-2] // patch_h, relative.shape[-1] // patch_w)


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> list[AttentionMap]:
    """Run a model and return which pixels its transformers attend to.

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
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, (MobileViTBlock, SeparableMobileViTBlock))}
    if not blocks:
        raise ValueError(f"expected a MobileViT of timm_mobilevit or a network with one, got {type(model).__name__}")
    if model.training:
        raise ValueError("expected a model in evaluation mode; call model.eval() first")
    fused = [m for m in model.modules() if isinstance(m, MultiHeadAttention) and m.fused_attn]
    maps: list[AttentionMap] = []
    handles = [
        handle
        for place, (name, block) in enumerate(blocks.items(), _FIRST_STAGE)
        for handle in _record(block, _stage(name, place), maps)
    ]
    try:
        for attention in fused:
            attention.fused_attn = False
        with torch.compiler.set_stance("force_eager"):  # compiled code may skip hooks that came later
            model(images)
    finally:
        for attention in fused:
            attention.fused_attn = True
        for handle in handles:
            handle.remove()
    return maps


def _stage(name: str, default: int) -> int:
    """Return the number of the stage in the name of a block: stages before it may have lost their blocks."""
    found = re.match(r".*stages\D*(\d+)", name)
    return int(found[1]) + 1 if found else default


def _record(
    block: MobileViTBlock | SeparableMobileViTBlock, stage: int, maps: list[AttentionMap]
) -> Iterator[RemovableHandle]:
    """Register hooks that append the maps of a block to a list when it runs."""
    patch = block.patch_h, block.patch_w
    size = [0, 0]

    def enter(_: nn.Module, args: tuple[Tensor]) -> None:
        # The block enlarges its map to the next multiple of the patch.
        size[:] = (math.ceil(side / step) * step for side, step in zip(args[0].shape[-2:], patch, strict=True))

    def leave(layer: int, _: nn.Module, args: tuple[Tensor], weights: Tensor) -> None:
        if isinstance(block, MobileViTBlock):
            received = weights.mean(dim=-2)  # [P·B, heads, N]
            scores = fold_phases(received.transpose(1, 2), *patch, *size).permute(0, 3, 1, 2)
        else:
            scores = rows_to_phases(weights, *patch, *size)  # from [B, 1, P, N]
        maps.append(AttentionMap(stage, layer, patch, scores))

    yield block.register_forward_pre_hook(enter)
    attentions = (m for m in block.modules() if isinstance(m, (MultiHeadAttention, SeparableAttention)))
    for layer, attention in enumerate(attentions, 1):
        yield attention.attn_drop.register_forward_hook(partial(leave, layer))


def overlay(image: Image.Image, relative: Tensor, *, opacity: float = 0.6) -> Image.Image:
    """Draw a map of attention over an image.

    Blue is less than even attention, white is even, red is more. The scale is the same for every map, so pictures can
    be compared: a multiple r of even attention has the colour at r / (1 + r) between blue and red.

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
        phases: Whether to add a row for each phase.

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

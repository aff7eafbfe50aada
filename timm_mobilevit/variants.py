"""The architectures as data: one row per variant.

Sources: MobileViT (arXiv:2110.02178, Section 4 and Table 4), MobileViTv2 (arXiv:2206.02680, Section 4.1), MobileViTv3
(arXiv:2209.15159, Tables 1, 2 and 7). Channel numbers that the papers leave open were read off the parameter shapes
of the published checkpoints.
"""

from dataclasses import dataclass
from typing import Literal

from ._nearest import suggestion

BlockKind = Literal["v1", "v2", "v3", "v3_separable"]


@dataclass(frozen=True)
class Variant:
    """One MobileViT architecture.

    Attributes:
        block: Which MobileViT block stages 3, 4 and 5 end with. ``v1``: multi-head attention per pixel phase.
            ``v2``: separable attention. ``v3``: v1 with the MobileViTv3 fusion. ``v3_separable``: v2 with it.
        stem_width: Channels after the stem.
        widths: Channels after stages 1 to 5.
        stage2_depth: Inverted residuals in stage 2 (every other stage has one).
        expand_ratio: Hidden width of an inverted residual over its input width.
        transformer_widths: Width of the transformer in stages 3, 4 and 5.
        transformer_depths: Transformer layers in stages 3, 4 and 5.
        final_width: Channels of the 1×1 expansion before pooling; None where there is none.
    """

    block: BlockKind
    stem_width: int
    widths: tuple[int, int, int, int, int]
    stage2_depth: int
    expand_ratio: int
    transformer_widths: tuple[int, int, int]
    transformer_depths: tuple[int, int, int] = (2, 4, 3)
    final_width: int | None = None

    @property
    def separable(self) -> bool:
        """Whether the transformers use separable attention."""
        return self.block in ("v2", "v3_separable")

    @property
    def v3_fusion(self) -> bool:
        """Whether the blocks have the fusion of MobileViTv3."""
        return self.block in ("v3", "v3_separable")


def _scaled(block: BlockKind, width: float) -> Variant:
    """Return a MobileViTv2-shaped variant: all channels are those of width 1.0 times ``width``."""

    def scale(channels: int) -> int:
        return int(channels * width)

    return Variant(
        block=block,
        stem_width=scale(32),
        widths=(scale(64), scale(128), scale(256), scale(384), scale(512)),
        stage2_depth=2,
        expand_ratio=2,
        transformer_widths=(scale(128), scale(192), scale(256)),
    )


_XXS = (64, 80, 96)  # transformer widths, the same in v1 and v3
_XS = (96, 120, 144)
_S = (144, 192, 240)
_L2 = (2, 2, 3)  # MobileViTv3's low-latency variants: two transformer layers instead of four in stage 4

# fmt: off
VARIANTS: dict[str, Variant] = {
    # name                      block  stem  widths of stages 1-5     depth  ratio  transformer        final
    "mobilevitv1_xxs":    Variant("v1", 16, (16, 24, 48, 64, 80), 3, 2, _XXS, final_width=320),
    "mobilevitv1_xs":     Variant("v1", 16, (32, 48, 64, 80, 96), 3, 4, _XS, final_width=384),
    "mobilevitv1_s":      Variant("v1", 16, (32, 64, 96, 128, 160), 3, 4, _S, final_width=640),

    "mobilevitv2_0_5":    _scaled("v2", 0.5),
    "mobilevitv2_0_75":   _scaled("v2", 0.75),
    "mobilevitv2_1_0":    _scaled("v2", 1.0),
    "mobilevitv2_1_25":   _scaled("v2", 1.25),
    "mobilevitv2_1_5":    _scaled("v2", 1.5),
    "mobilevitv2_1_75":   _scaled("v2", 1.75),
    "mobilevitv2_2_0":    _scaled("v2", 2.0),

    "mobilevitv3_xxs":    Variant("v3", 16, (16, 24, 64, 80, 128), 3, 2, _XXS, final_width=512),
    "mobilevitv3_xs":     Variant("v3", 16, (32, 48, 96, 160, 160), 3, 4, _XS, final_width=640),
    # The reference expands four times but never beyond 960 channels: 960, not 1280.
    "mobilevitv3_s":      Variant("v3", 16, (32, 64, 128, 256, 320), 3, 4, _S, final_width=960),
    "mobilevitv3_xxs_l2": Variant("v3", 16, (16, 24, 64, 80, 128), 3, 2, _XXS, _L2, final_width=512),
    "mobilevitv3_xs_l2":  Variant("v3", 16, (32, 48, 96, 160, 160), 3, 4, _XS, _L2, final_width=640),
    "mobilevitv3_s_l2":   Variant("v3", 16, (32, 64, 128, 256, 320), 3, 4, _S, _L2, final_width=960),

    "mobilevitv3_0_5":    _scaled("v3_separable", 0.5),
    "mobilevitv3_0_75":   _scaled("v3_separable", 0.75),
    "mobilevitv3_1_0":    _scaled("v3_separable", 1.0),
}
# fmt: on

# timm's own models of the same architectures, which have names and code of their own.
TIMM_NAMES = {f"mobilevit_{size}": f"mobilevitv1_{size}" for size in ("xxs", "xs", "s")} | {
    f"mobilevitv2_{width}": f"mobilevitv2_{width[0]}_{width[1:].rstrip('0') or '0'}"
    for width in ("050", "075", "100", "125", "150", "175", "200")
}


def get_variant(name: str) -> Variant:
    """Look up an architecture by name.

    Raises:
        ValueError: If there is none of that name; the message has the nearest ones.

    Example:
        >>> get_variant("mobilevitv3_1_0").widths
        (64, 128, 256, 384, 512)
    """
    if name not in VARIANTS:
        if name in TIMM_NAMES:
            raise ValueError(f"unknown architecture {name!r}; timm's {name} is {TIMM_NAMES[name]} here")
        raise ValueError(f"unknown architecture {name!r}; {suggestion(name, VARIANTS)}")
    return VARIANTS[name]

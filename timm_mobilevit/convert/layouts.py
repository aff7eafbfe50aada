"""The layouts that MobileViT weights are published in: how each names and orders things."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..variants import BlockKind, Variant
from . import cvnets, huggingface, mmpretrain

Source = Literal["cvnets", "transformers", "mmpretrain", "timm"]
ChannelOrder = Literal["rgb", "bgr"]

STEM = "stem.conv.weight"
HEAD = ("head.fc.weight", "head.fc.bias")
_ALL_BLOCKS: tuple[BlockKind, ...] = ("v1", "v2", "v3", "v3_separable")


@dataclass(frozen=True)
class Layout:
    """How one source names and orders things.

    Attributes:
        signature: Matches the end of the first convolution's name, which tells the layouts apart.
        rules: Substitutions from our names to theirs.
        blocks: The kinds of MobileViT that come in this layout.
        bgr: Those among them whose weights expect BGR images.
        ignored: Names that are no part of the model.
        landmark: A name beside ``stem.conv.weight`` that another layout with that name does not have.
        body: Matches the names of the model, if the file may hold more than the model; None if all names are its own.
    """

    signature: re.Pattern[str]
    rules: Callable[[Variant], list[tuple[str, str]]]
    blocks: tuple[BlockKind, ...] = _ALL_BLOCKS
    bgr: tuple[BlockKind, ...] = ()
    ignored: re.Pattern[str] | None = None
    landmark: str = ""
    body: re.Pattern[str] = re.compile("")

    def prefix(self, key: str) -> str | None:
        """Return what stands before the first convolution's name; None for any other parameter."""
        match = re.fullmatch(rf"((?:.*?\.)??){self.signature.pattern}", key)
        return match[1] if match else None

    def channel_order(self, variant: Variant) -> ChannelOrder:
        """Return the order of the channels that weights of an architecture expect."""
        return "bgr" if variant.block in self.bgr else "rgb"


LAYOUTS: dict[str, Layout] = {
    # CVNets v0.1, which trained v1 and the letter sizes of v3, reads images with OpenCV: BGR. Later versions use PIL.
    "cvnets": Layout(cvnets.SIGNATURE, cvnets.rules, bgr=("v1", "v3"), ignored=cvnets.IGNORED),
    # transformers' image processors flip RGB to BGR for both generations. That is right for v1 only: v2 was trained on
    # RGB, so its weights are taken as RGB here, against transformers' documentation.
    "transformers": Layout(
        huggingface.SIGNATURE, huggingface.rules, blocks=("v1", "v2"), bgr=("v1",), body=huggingface.BODY
    ),
    "mmpretrain": Layout(
        mmpretrain.SIGNATURE,
        mmpretrain.rules,
        blocks=("v1",),
        bgr=("v1",),
        landmark=mmpretrain.LANDMARK,
        body=mmpretrain.BODY,
    ),
    "timm": Layout(re.compile(r"stem\.conv\.weight"), lambda variant: []),
}


def get_layout(source: str, variant: Variant) -> Layout:
    """Look up a layout by its name.

    Raises:
        ValueError: If there is none, or the architecture does not come in it.
    """
    layout = LAYOUTS.get(source)
    if layout is None:
        raise ValueError(f"the source must be one of {', '.join(LAYOUTS)} or auto, got {source!r}")
    if variant.block not in layout.blocks:
        raise ValueError(f"{source} has no such architecture: it comes as MobileViT {' and '.join(layout.blocks)} only")
    return layout


def their_names(key: str, rules: list[tuple[str, str]]) -> list[str]:
    """Rename a parameter of ours; three names where the layout splits queries, keys and values."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return [key.replace("{qkv}", part) for part in ("query", "key", "value")] if "{qkv}" in key else [key]

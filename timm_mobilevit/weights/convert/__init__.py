"""Conversion of checkpoints: from every layout that MobileViT weights are published in to ours, and back.

A layout is a literal table of substitutions from our parameter names to theirs; the way back is derived from it. Ours
is timm's, extended to v3 by the same scheme.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...network.model import MobileViT
from ...variants import VARIANTS, BlockKind, Variant, get_variant
from ..pretrained import ChannelOrder
from . import cvnets, huggingface, mmpretrain

__all__ = ["Source", "convert_state_dict", "detect_source", "export_state_dict", "source_names"]

Source = Literal["cvnets", "transformers", "mmpretrain", "timm"]

_STEM = "stem.conv.weight"
_HEAD = ("head.fc.weight", "head.fc.bias")
_ALL_BLOCKS: tuple[BlockKind, ...] = ("v1", "v2", "v3", "v3_separable")


@dataclass(frozen=True)
class _Layout:
    """How one source names and orders things.

    Attributes:
        signature: Matches the name of the first convolution's weight, which tells the layouts apart.
        rules: Substitutions from our names to theirs.
        blocks: The kinds of MobileViT that come in this layout.
        bgr: Those among them whose weights expect BGR images.
        ignored: Names that are no part of the model.
    """

    signature: re.Pattern[str]
    rules: Callable[[Variant], list[tuple[str, str]]]
    blocks: tuple[BlockKind, ...] = _ALL_BLOCKS
    bgr: tuple[BlockKind, ...] = ()
    ignored: re.Pattern[str] | None = None

    def channel_order(self, variant: Variant) -> ChannelOrder:
        return "bgr" if variant.block in self.bgr else "rgb"


_LAYOUTS: dict[str, _Layout] = {
    # CVNets v0.1, which trained v1 and the letter sizes of v3, reads images with OpenCV: BGR. Later versions use PIL.
    "cvnets": _Layout(cvnets.SIGNATURE, cvnets.rules, bgr=("v1", "v3"), ignored=cvnets.IGNORED),
    # transformers' image processors flip RGB to BGR for both generations. That is right for v1 only: v2 was trained on
    # RGB, so its weights are taken as RGB here, against transformers' documentation.
    "transformers": _Layout(huggingface.SIGNATURE, huggingface.rules, blocks=("v1", "v2"), bgr=("v1",)),
    "mmpretrain": _Layout(mmpretrain.SIGNATURE, mmpretrain.rules, blocks=("v1",), bgr=("v1",)),
    "timm": _Layout(re.compile(r"stem\.conv\.weight"), lambda variant: []),
}


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    arch: str,
    source: Source | Literal["auto"] = "auto",
    channel_order: ChannelOrder | None = None,
) -> dict[str, Tensor]:
    """Convert a classifier's state dict to our layout.

    Args:
        state_dict: Flat state dict of a whole model, or of one without its classifier. Left as it is.
        arch: Architecture, a name that ``timm.list_models(module="mobilevit_zoo")`` gives.
        source: Layout of ``state_dict``: ``"cvnets"`` (CVNets, CoreNet and MobileViTv3's reference),
            ``"transformers"``, ``"mmpretrain"``, ``"timm"`` (ours too), or ``"auto"`` to tell it by the names.
        channel_order: Order of the input channels that the file was trained with. ``"bgr"`` flips the stem, ``"rgb"``
            leaves it; None takes the known order of the source and the architecture.

    Returns:
        The state dict of ``timm.create_model(arch)``, in its order. Tensors that need no change are not copied.

    Raises:
        ValueError: If the architecture or source is unknown, or names or shapes do not fit; the message names them.

    Example:
        >>> import timm
        >>> model = timm.create_model("mobilevitv3_xxs")
        >>> theirs = export_state_dict(model.state_dict(), "mobilevitv3_xxs", "cvnets")
        >>> list(theirs)[0], theirs["conv_1.block.conv.weight"].shape
        ('conv_1.block.conv.weight', torch.Size([16, 3, 3, 3]))
        >>> ours = convert_state_dict(theirs, "mobilevitv3_xxs")
        >>> list(ours)[0], torch.equal(ours["stem.conv.weight"], model.stem.conv.weight)
        ('stem.conv.weight', True)
    """
    variant = get_variant(arch)
    name = detect_source(state_dict) if source == "auto" else source
    layout = _get_layout(name, variant)
    state_dict = _strip(state_dict, name, layout, variant)
    out, missing, left_over = _rename(state_dict, variant, layout)
    if all(key in missing for key in _HEAD):  # a backbone
        missing = [key for key in missing if key not in _HEAD]
    if missing or left_over:
        raise ValueError(
            f"this is no {name} checkpoint of {arch}: "
            + "; ".join(
                part
                for part in (
                    missing and f"missing {_some(missing)}",
                    left_over and f"unknown or wrong shape {_some(left_over)}",
                )
                if part
            )
            + _guess(state_dict, name, arch)
        )
    weights, biases = (len(out.get(key, ())) for key in _HEAD)
    if weights != biases:  # PyTorch would tell it only after all else has been loaded
        raise ValueError(f"the classifier has weights for {weights} classes, but biases for {biases}")
    order = channel_order or layout.channel_order(variant)
    out[_STEM] = _to_rgb(out[_STEM], order)
    return out


def export_state_dict(
    state_dict: Mapping[str, Tensor], arch: str, target: Source, channel_order: ChannelOrder | None = None
) -> dict[str, Tensor]:
    """Convert a state dict in our layout to another one: the inverse of :func:`convert_state_dict`.

    Args:
        state_dict: State dict in our layout, with or without the classifier. Left as it is.
        arch: Its architecture.
        target: Layout to convert to.
        channel_order: Order of the input channels that the result is to expect; None takes the known order of the
            target and the architecture.

    Returns:
        The state dict in the other layout. ``convert_state_dict`` brings it back bit for bit.

    Raises:
        ValueError: If the architecture or target is unknown, or ``state_dict`` is not that of ``arch``.
    """
    variant = get_variant(arch)
    layout = _get_layout(target, variant)
    ours = convert_state_dict(state_dict, arch, source="timm")
    order = channel_order or layout.channel_order(variant)
    ours[_STEM] = _to_rgb(ours[_STEM], order)
    out: dict[str, Tensor] = {}
    rename = partial(_their_names, rules=layout.rules(variant))
    for key, tensor in ours.items():
        names = rename(key)
        out.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True))
    return out


def detect_source(state_dict: Mapping[str, Tensor]) -> Source:
    """Tell the layout of a state dict by its names.

    Raises:
        ValueError: If it is none that is known.

    Example:
        >>> detect_source({"conv_1.block.conv.weight": torch.zeros(16, 3, 3, 3)})
        'cvnets'
    """
    for name, layout in _LAYOUTS.items():
        if any(layout.signature.fullmatch(key) for key in state_dict):
            return name  # type: ignore[return-value]
    raise ValueError(
        f"no layout of {', '.join(_LAYOUTS)} has these parameter names: {_some(list(state_dict)) or 'none at all'}; "
        "only checkpoints of a MobileViT classifier can be converted"
    )


def source_names(key: str, arch: str, source: Source) -> list[str]:
    """Tell what a parameter of ours is called in another layout.

    Args:
        key: Name of a parameter or buffer of ours.
        arch: Architecture.
        source: The other layout.

    Returns:
        One name, or three where theirs are queries, keys and values and ours one tensor.

    Example:
        >>> source_names("stages.2.1.norm.weight", "mobilevitv3_1_0", "cvnets")
        ['layer_3.1.global_rep.2.weight']
    """
    variant = get_variant(arch)
    return _their_names(key, _get_layout(source, variant).rules(variant))


def _get_layout(source: str, variant: Variant) -> _Layout:
    layout = _LAYOUTS.get(source)
    if layout is None:
        raise ValueError(f"the source must be one of {', '.join(_LAYOUTS)} or auto, got {source!r}")
    if variant.block not in layout.blocks:
        raise ValueError(f"{source} has no such architecture: it comes as MobileViT {' and '.join(layout.blocks)} only")
    return layout


def _their_names(key: str, rules: list[tuple[str, str]]) -> list[str]:
    """What a parameter of ours is called there; three names where they split queries, keys and values."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return [key.replace("{qkv}", part) for part in ("query", "key", "value")] if "{qkv}" in key else [key]


def _strip(state_dict: Mapping[str, Tensor], source: str, layout: _Layout, variant: Variant) -> dict[str, Tensor]:
    """Drop what is knowingly no part of the model; complete the names of a model that was saved without its head."""
    out = {key: value for key, value in state_dict.items() if not (layout.ignored and layout.ignored.match(key))}
    if source == "transformers" and "conv_stem.convolution.weight" in out:
        prefix = "mobilevitv2" if variant.separable else "mobilevit"
        out = {f"{prefix}.{key}": value for key, value in out.items()}
    return out


def _rename(
    state_dict: Mapping[str, Tensor], variant: Variant, layout: _Layout
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Look up every parameter of ours; also tell which of ours are missing and which of theirs are left over."""
    rules = layout.rules(variant)
    expected = MobileViT(variant, device="meta").state_dict()
    out: dict[str, Tensor] = {}
    missing = []
    left_over = dict(state_dict)
    for key, like in expected.items():
        names = _their_names(key, rules)
        if key.endswith("num_batches_tracked") and names[0] not in state_dict:  # older files lack these counters
            out[key] = torch.zeros((), dtype=torch.int64)
            continue
        tensors = [state_dict[name] for name in names if name in state_dict]
        if len(tensors) < len(names):
            missing.append(key)
            continue
        tensor = torch.cat(tensors) if len(tensors) > 1 and _stackable(tensors) else tensors[0]
        if not _fits(key, tensor, like):
            continue  # stays in left_over
        out[key] = tensor
        for name in names:
            del left_over[name]
    return out, missing, [f"{name} {list(tensor.shape)}" for name, tensor in left_over.items()]


def _stackable(tensors: list[Tensor]) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1 and tensors[0].ndim > 0


def _fits(key: str, tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor has the shape of our parameter; classes and input channels are free."""
    if key in _HEAD:
        return tensor.ndim == like.ndim and tensor.shape[1:] == like.shape[1:]
    if key == _STEM:
        return tensor.ndim == like.ndim and tensor.shape[0] == like.shape[0] and tensor.shape[2:] == like.shape[2:]
    return tensor.shape == like.shape


def _to_rgb(stem: Tensor, order: str) -> Tensor:
    """Flip the input channels of the first convolution if they are BGR."""
    if order not in ("rgb", "bgr"):
        raise ValueError(f"channel_order must be 'rgb', 'bgr' or None, got {order!r}")
    if order == "rgb":
        return stem
    if stem.shape[1] != 3:
        raise ValueError(
            f"only a stem of three input channels can be BGR, this one has {stem.shape[1]}; pass channel_order='rgb' "
            "to take it as it is"
        )
    return stem.flip(1)


def _some(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _guess(state_dict: Mapping[str, Tensor], source: str, arch: str) -> str:
    """A hint at the architectures that do fit, if any."""
    layout = _LAYOUTS[source]
    stem = next((tensor for key, tensor in state_dict.items() if layout.signature.fullmatch(key)), None)
    fits = []
    for other, variant in VARIANTS.items():
        possible = other != arch and variant.block in layout.blocks
        if possible and stem is not None and stem.shape[:1] == (variant.stem_width,):
            _, missing, left_over = _rename(state_dict, variant, layout)
            if not left_over and all(key in _HEAD for key in missing):
                fits.append(other)
    return f". It fits {' and '.join(fits)}" if fits else ""

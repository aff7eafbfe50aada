"""Conversion of checkpoints: from every layout that MobileViT weights are published in to ours, and back.

A layout is a literal table of substitutions from our parameter names to theirs; the way back is derived from it. Ours
is timm's, extended to v3 by the same scheme.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from ...network.model import MobileViT
from ...variants import VARIANTS, BlockKind, Variant, get_variant
from ..pretrained import ChannelOrder
from . import cvnets, huggingface, mmpretrain

__all__ = [
    "Source", "Subtree", "convert_state_dict", "detect_source", "export_state_dict", "find_subtree",
    "fitting_architectures", "missing_end", "source_names", "the_architecture",
]  # fmt: skip

_logger = logging.getLogger(__name__)

Source = Literal["cvnets", "transformers", "mmpretrain", "timm"]

_STEM = "stem.conv.weight"
_HEAD = ("head.fc.weight", "head.fc.bias")
_ALL_BLOCKS: tuple[BlockKind, ...] = ("v1", "v2", "v3", "v3_separable")


@dataclass(frozen=True)
class _Layout:
    """How one source names and orders things.

    Attributes:
        signature: Matches the end of the first convolution's name, which tells the layouts apart.
        rules: Substitutions from our names to theirs.
        blocks: The kinds of MobileViT that come in this layout.
        bgr: Those among them whose weights expect BGR images.
        ignored: Names that are no part of the model.
        landmark: A name beside ``stem.conv.weight`` that another layout with that name does not have.
        body: Matches the names of the model; what has others lies beside it. Everything, if there is no pattern.
    """

    signature: re.Pattern[str]
    rules: Callable[[Variant], list[tuple[str, str]]]
    blocks: tuple[BlockKind, ...] = _ALL_BLOCKS
    bgr: tuple[BlockKind, ...] = ()
    ignored: re.Pattern[str] | None = None
    landmark: str = ""
    body: re.Pattern[str] = re.compile("")

    def prefix(self, key: str) -> str | None:
        """What stands before the first convolution's name; None for any other parameter."""
        match = re.fullmatch(rf"((?:.*?\.)??){self.signature.pattern}", key)
        return match[1] if match else None

    def landmark_beside(self, key: str) -> str:
        return key.removesuffix(_STEM) + self.landmark

    def channel_order(self, variant: Variant) -> ChannelOrder:
        return "bgr" if variant.block in self.bgr else "rgb"


_LAYOUTS: dict[str, _Layout] = {
    # CVNets v0.1, which trained v1 and the letter sizes of v3, reads images with OpenCV: BGR. Later versions use PIL.
    "cvnets": _Layout(cvnets.SIGNATURE, cvnets.rules, bgr=("v1", "v3"), ignored=cvnets.IGNORED),
    # transformers' image processors flip RGB to BGR for both generations. That is right for v1 only: v2 was trained on
    # RGB, so its weights are taken as RGB here, against transformers' documentation.
    "transformers": _Layout(
        huggingface.SIGNATURE, huggingface.rules, blocks=("v1", "v2"), bgr=("v1",), body=huggingface.BODY
    ),
    "mmpretrain": _Layout(
        mmpretrain.SIGNATURE,
        mmpretrain.rules,
        blocks=("v1",),
        bgr=("v1",),
        landmark=mmpretrain.LANDMARK,
        body=mmpretrain.BODY,
    ),
    "timm": _Layout(re.compile(r"stem\.conv\.weight"), lambda variant: []),
}


@dataclass(frozen=True)
class Subtree:
    """The MobileViT in a state dict.

    Attributes:
        source: Its layout.
        prefix: What stands before its names, with the dot at its end; empty for nothing.
        state_dict: Its weights, without the prefix.
        left_out: Names of what lies beside it, such as necks and heads.
    """

    source: Source
    prefix: str
    state_dict: dict[str, Tensor]
    left_out: list[str]


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    arch: str,
    source: Source | Literal["auto"] = "auto",
    channel_order: ChannelOrder | None = None,
    prefix: str | None = None,
) -> dict[str, Tensor]:
    """Convert a state dict to our layout.

    The MobileViT is found below any prefix: in a detector or segmentor (``backbone.``), a training module
    (``model.``), an encoder (``encoder.model.``) and so on. What lies beside it is left out, and the log says so.

    Args:
        state_dict: Flat state dict of a model, or of one without its end: without the classifier, the last stages (as
            of a ``features_only`` model) or both. Left as it is.
        arch: Architecture, a name that ``timm.list_models(module="mobilevit_zoo")`` gives.
        source: Layout of ``state_dict``: ``"cvnets"`` (CVNets, CoreNet and MobileViTv3's reference),
            ``"transformers"``, ``"mmpretrain"``, ``"timm"`` (ours too), or ``"auto"`` to tell it by the names.
        channel_order: Order of the input channels that the file was trained with. ``"bgr"`` flips the stem, ``"rgb"``
            leaves it; None takes the known order of the source and the architecture.
        prefix: What stands before the names of the model, such as ``"student."``; None finds it.

    Returns:
        The state dict of ``timm.create_model(arch)``, in its order. Tensors that need no change are not copied.

    Raises:
        ValueError: If the architecture or source is unknown, several prefixes have a MobileViT, or names or shapes do
            not fit; the message names them.

    Example:
        >>> import timm
        >>> model = timm.create_model("mobilevitv3_xxs")
        >>> theirs = export_state_dict(model.state_dict(), "mobilevitv3_xxs", "cvnets")
        >>> list(theirs)[0], theirs["conv_1.block.conv.weight"].shape
        ('conv_1.block.conv.weight', torch.Size([16, 3, 3, 3]))
        >>> ours = convert_state_dict({f"encoder.{name}": tensor for name, tensor in theirs.items()}, "mobilevitv3_xxs")
        >>> list(ours)[0], torch.equal(ours["stem.conv.weight"], model.stem.conv.weight)
        ('stem.conv.weight', True)
    """
    variant = get_variant(arch)
    if source != "auto":
        _get_layout(source, variant)
    subtree = find_subtree(state_dict, source, prefix)
    name = subtree.source
    layout = _get_layout(name, variant)
    if subtree.left_out:
        _logger.warning(
            "%s below %r is a MobileViT; left out are the %d tensors beside it: %s",
            name, subtree.prefix, len(subtree.left_out), _some(_tops(subtree.left_out, subtree.prefix)),
        )  # fmt: skip
    state_dict = _complete(subtree.state_dict, name, variant)
    out, missing, left_over = _rename(state_dict, variant, layout)
    if set(missing) == set(_end_of(variant, missing)):  # a backbone
        missing = []
    if missing or left_over:
        raise ValueError(
            f"this is no {name} checkpoint of {arch}: {_complaints(missing, left_over)}{_guess(subtree, arch)}"
        )
    weights, biases = (len(out.get(key, ())) for key in _HEAD)
    if weights != biases:  # PyTorch would tell it only after all else has been loaded
        raise ValueError(f"{_HEAD[0]} is for {weights} classes, but {_HEAD[1]} for {biases}")
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
    return find_subtree(state_dict).source


def find_subtree(
    state_dict: Mapping[str, Tensor], source: Source | Literal["auto"] = "auto", prefix: str | None = None
) -> Subtree:
    """Find the MobileViT in a state dict by its names.

    Args:
        state_dict: Flat state dict.
        source: Layout, or ``"auto"`` for any.
        prefix: What stands before the model's names, with or without the dot at its end; None for anything.

    Raises:
        ValueError: If there is none, or several.

    Example:
        >>> names = ["backbone.stem.conv.weight", "backbone.stages.0.0.conv1_1x1.conv.weight", "neck.conv.weight"]
        >>> found = find_subtree(dict.fromkeys(names))
        >>> found.source, found.prefix, found.left_out
        ('timm', 'backbone.', ['neck.conv.weight'])
    """
    if source != "auto" and source not in _LAYOUTS:
        raise ValueError(f"the source must be one of {', '.join(_LAYOUTS)} or auto, got {source!r}")
    if prefix:
        prefix = prefix.rstrip(".") + "."
    layouts = {name: layout for name, layout in _LAYOUTS.items() if source in ("auto", name)}
    places: dict[str, str] = {}  # prefix to layout
    for key in state_dict:
        for name, layout in layouts.items():
            place = layout.prefix(key)
            if place is not None and (not layout.landmark or layout.landmark_beside(key) in state_dict):
                places[place] = name
                break  # the first that recognises it
    if prefix is not None:
        places = {place: name for place, name in places.items() if place == prefix}
    if len(places) > 1:  # other networks have such stems too
        fitting = {p: name for p, name in places.items() if fitting_architectures(_below(state_dict, p, name))}
        places = fitting or places
    if not places:
        where = "" if prefix is None else f" below {prefix!r}"
        raise ValueError(
            f"no layout of {', '.join(_LAYOUTS) if source == 'auto' else source} has these parameter names{where}: "
            f"{_some(list(state_dict)) or 'none at all'}; only checkpoints with a MobileViT can be converted"
        )
    if len(places) > 1:
        raise ValueError(
            f"there are several MobileViTs, below {' and '.join(map(repr, places))}; choose one with "
            f"prefix={min(places)!r} (`timm-mobilevit convert --prefix {min(places)}`)"
        )
    ((place, name),) = places.items()
    return _below(state_dict, place, name)


def _below(state_dict: Mapping[str, Tensor], prefix: str, source: str) -> Subtree:
    layout = _LAYOUTS[source]
    inside: dict[str, Tensor] = {}
    left_out = []
    for key, tensor in state_dict.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or not layout.body.match(name):
            left_out.append(key)
        elif not (layout.ignored and layout.ignored.match(name)):
            # A features_only model of timm has its stages side by side.
            inside[re.sub(r"^stages_(\d)\.", r"stages.\1.", name) if source == "timm" else name] = tensor
    return Subtree(source, prefix, inside, left_out)  # type: ignore[arg-type]


def the_architecture(subtree: Subtree) -> str:
    """The one architecture that a MobileViT fits.

    Raises:
        ValueError: If none or several do. If none, the message names what does not fit the closest.
    """
    fits = fitting_architectures(subtree)
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"it could be any of {', '.join(fits)}: name one with --arch")
    layout = _LAYOUTS[subtree.source]
    faults: dict[str, tuple[list[str], list[str]]] = {}
    for arch, variant in VARIANTS.items():
        if variant.block in layout.blocks:
            _, missing, left_over = _rename(_complete(subtree.state_dict, subtree.source, variant), variant, layout)
            faults[arch] = ([] if set(missing) == set(_end_of(variant, missing)) else missing, left_over)
    closest = min(faults, key=lambda arch: sum(map(len, faults[arch])))
    raise ValueError(
        f"its names are those of {subtree.source}, but no architecture of ours has all of them in these shapes; the "
        f"closest is {closest}: {_complaints(*faults[closest])}"
    )


def fitting_architectures(subtree: Subtree) -> list[str]:
    """Tell which architectures a MobileViT fits, by the names and shapes of its weights.

    Several fit one without its end: the last stages are where they differ.
    """
    layout = _LAYOUTS[subtree.source]
    stem = next((tensor for key, tensor in subtree.state_dict.items() if layout.signature.fullmatch(key)), None)
    fits = []
    for arch, variant in VARIANTS.items():
        if variant.block in layout.blocks and stem is not None and stem.shape[:1] == (variant.stem_width,):
            state_dict = _complete(subtree.state_dict, subtree.source, variant)
            _, missing, left_over = _rename(state_dict, variant, layout)
            if not left_over and set(missing) == set(_end_of(variant, missing)):
                fits.append(arch)
    return fits


def missing_end(state_dict: Mapping[str, Tensor], arch: str) -> list[str]:
    """Names of our parameters that a converted state dict lacks: none, or those of the end of the model."""
    return [key for key in _expected(get_variant(arch)) if key not in state_dict]


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


def _complete(state_dict: dict[str, Tensor], source: str, variant: Variant) -> dict[str, Tensor]:
    """Complete the names of a model that was saved without its head: its own module is one level deeper."""
    if source == "transformers" and "conv_stem.convolution.weight" in state_dict:
        prefix = "mobilevitv2" if variant.separable else "mobilevit"
        return {f"{prefix}.{key}": value for key, value in state_dict.items()}
    if source == "mmpretrain" and "stem.conv.weight" in state_dict:
        return {f"backbone.{key}": value for key, value in state_dict.items()}
    return state_dict


@cache
def _expected(variant: Variant) -> dict[str, Tensor]:
    """Our names and shapes."""
    return MobileViT(variant, device="meta").state_dict()


def _end_of(variant: Variant, missing: list[str]) -> list[str]:
    """The names from the stage, or later part, on that the first missing name belongs to."""
    part = re.match(r"stages\.[1-4]\.|final_conv\.|head\.", missing[0]) if missing else None
    if not part:
        return []
    keys = list(_expected(variant))
    return keys[next(i for i, key in enumerate(keys) if key.startswith(part[0])) :]


def _rename(
    state_dict: Mapping[str, Tensor], variant: Variant, layout: _Layout
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Look up every parameter of ours; also tell which of ours are missing and which of theirs are left over."""
    rules = layout.rules(variant)
    out: dict[str, Tensor] = {}
    missing = []
    left_over = dict(state_dict)
    for key, like in _expected(variant).items():
        names = _their_names(key, rules)
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
    # Older files lack these counters.
    counters = [key for key in missing if key.endswith("num_batches_tracked") and _beside(key, "weight") in out]
    out |= {key: torch.zeros((), dtype=torch.int64) for key in counters}
    out = {key: out[key] for key in _expected(variant) if key in out}
    missing = [key for key in missing if key not in counters]
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


def _complaints(missing: list[str], left_over: list[str]) -> str:
    """Which names of ours a state dict lacks, and which of its names are not ours."""
    parts = [f"missing {_some(missing)}"] if missing else []
    return "; ".join([*parts, f"unknown or wrong shape {_some(left_over)}"] if left_over else parts)


def _some(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _tops(names: list[str], prefix: str) -> list[str]:
    """The modules that names belong to, each once."""
    tops = (".".join(name.split(".")[: prefix.count(".") or 1]) for name in names)
    return list(dict.fromkeys(tops))


def _beside(key: str, name: str) -> str:
    return f"{key.rpartition('.')[0]}.{name}"


def _guess(subtree: Subtree, arch: str) -> str:
    """A hint at the architectures that do fit, if any."""
    fits = [other for other in fitting_architectures(subtree) if other != arch]
    return f". It fits {' and '.join(fits)}" if fits else ""

"""Conversion of state dicts to our layout, and back."""

import logging
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ..variants import get_variant
from .layouts import HEAD, STEM, ChannelOrder, Source, get_layout, their_names
from .matching import Subtree, complaints, fitting_architectures, rename, some
from .subtree import find_subtree

_logger = logging.getLogger(__name__)


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
        >>> import timm, torch
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
        get_layout(source, variant)
    subtree = find_subtree(state_dict, source, prefix)
    name = subtree.source
    layout = get_layout(name, variant)
    if subtree.left_out:
        _logger.warning(
            "%s below %r is a MobileViT; left out are the %d tensors beside it: %s",
            name, subtree.prefix, len(subtree.left_out), some(_tops(subtree.left_out, subtree.prefix)),
        )  # fmt: skip
    out, missing, left_over = rename(subtree, variant)
    if missing or left_over:
        raise ValueError(
            f"this is no {name} checkpoint of {arch}: {complaints(missing, left_over)}{_guess(subtree, arch)}"
        )
    weights, biases = (len(out.get(key, ())) for key in HEAD)
    if weights != biases:  # PyTorch would raise only after everything else has been loaded
        raise ValueError(f"{HEAD[0]} is for {weights} classes, but {HEAD[1]} for {biases}")
    out[STEM] = _to_rgb(out[STEM], channel_order or layout.channel_order(variant))
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
    layout = get_layout(target, variant)
    ours = convert_state_dict(state_dict, arch, source="timm")
    ours[STEM] = _to_rgb(ours[STEM], channel_order or layout.channel_order(variant))
    out: dict[str, Tensor] = {}
    rules = layout.rules(variant)
    for key, tensor in ours.items():
        names = their_names(key, rules)
        out.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True))
    return out


def source_names(key: str, arch: str, source: Source) -> list[str]:
    """Return the name of a parameter of ours in another layout.

    Args:
        key: Name of a parameter or buffer of ours.
        arch: Architecture.
        source: The other layout.

    Returns:
        One name; three if the layout has separate queries, keys and values where we have one tensor.

    Example:
        >>> source_names("stages.2.1.norm.weight", "mobilevitv3_1_0", "cvnets")
        ['layer_3.1.global_rep.2.weight']
    """
    variant = get_variant(arch)
    return their_names(key, get_layout(source, variant).rules(variant))


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


def _tops(names: list[str], prefix: str) -> list[str]:
    """Return the modules that names belong to, each once."""
    tops = (".".join(name.split(".")[: prefix.count(".") or 1]) for name in names)
    return list(dict.fromkeys(tops))


def _guess(subtree: Subtree, arch: str) -> str:
    """Return a hint at the architectures that do fit, if any."""
    fits = [other for other in fitting_architectures(subtree) if other != arch]
    return f". It fits {' and '.join(fits)}" if fits else ""

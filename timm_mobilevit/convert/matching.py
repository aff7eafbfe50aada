"""Which architectures the parameters of a state dict fit, by their names and shapes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..network.model import MobileViT
from ..variants import VARIANTS, Variant, get_variant
from .layouts import HEAD, LAYOUTS, STEM, Source, their_names


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


def the_architecture(subtree: Subtree) -> str:
    """Name the one architecture that a MobileViT fits.

    Raises:
        ValueError: If none or several do. If none, the message names what does not fit the closest.
    """
    fits = fitting_architectures(subtree)
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"it could be any of {', '.join(fits)}: name one with --arch")
    faults = _faults(subtree, VARIANTS)
    closest = min(faults, key=lambda arch: sum(map(len, faults[arch])))
    raise ValueError(
        f"its names are those of {subtree.source}, but no architecture of ours has all of them in these shapes; the "
        f"closest is {closest}: {complaints(*faults[closest])}"
    )


def fitting_architectures(subtree: Subtree) -> list[str]:
    """Find the architectures that a MobileViT fits, by the names and shapes of its weights.

    A MobileViT without its last stages may fit several, because architectures differ there.
    """
    signature = LAYOUTS[subtree.source].signature
    stem = next((tensor for key, tensor in subtree.state_dict.items() if signature.fullmatch(key)), None)
    # It rules out most, which need not be built.
    like = {arch: v for arch, v in VARIANTS.items() if stem is not None and stem.shape[:1] == (v.stem_width,)}
    return [arch for arch, fault in _faults(subtree, like).items() if not any(fault)]


def _faults(subtree: Subtree, variants: Mapping[str, Variant]) -> dict[str, tuple[list[str], list[str]]]:
    """Return, for each architecture that comes in the layout, which names are missing and which are left over."""
    blocks = LAYOUTS[subtree.source].blocks
    return {arch: rename(subtree, variant)[1:] for arch, variant in variants.items() if variant.block in blocks}


def missing_end(state_dict: Mapping[str, Tensor], arch: str) -> list[str]:
    """List our parameters that a converted state dict lacks: none, or those of the end of the model."""
    return [key for key in _expected(get_variant(arch)) if key not in state_dict]


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
    """Return our names and shapes."""
    return MobileViT(variant, device="meta").state_dict()


def _end_of(variant: Variant, missing: list[str]) -> list[str]:
    """Return the names from the stage, or later part, on that the first missing name belongs to."""
    part = re.match(r"stages\.[1-4]\.|final_conv\.|head\.", missing[0]) if missing else None
    if not part:
        return []
    keys = list(_expected(variant))
    return keys[next(i for i, key in enumerate(keys) if key.startswith(part[0])) :]


def rename(subtree: Subtree, variant: Variant) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Look up every parameter of ours; return also which of ours are missing and which of theirs are left over.

    If those missing are the end of the model, it is a backbone, and none counts as missing.
    """
    state_dict = _complete(subtree.state_dict, subtree.source, variant)
    rules = LAYOUTS[subtree.source].rules(variant)
    out: dict[str, Tensor] = {}
    missing = []
    left_over = dict(state_dict)
    for key, like in _expected(variant).items():
        names = their_names(key, rules)
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
    counter = "num_batches_tracked"
    counters = [key for key in missing if key.endswith(counter) and f"{key.removesuffix(counter)}weight" in out]
    out |= {key: torch.zeros((), dtype=torch.int64) for key in counters}
    out = {key: out[key] for key in _expected(variant) if key in out}
    missing = [key for key in missing if key not in counters]
    if set(missing) == set(_end_of(variant, missing)):
        missing = []
    return out, missing, [f"{name} {list(tensor.shape)}" for name, tensor in left_over.items()]


def _stackable(tensors: list[Tensor]) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1 and tensors[0].ndim > 0


def _fits(key: str, tensor: Tensor, like: Tensor) -> bool:
    """Return whether a tensor has the shape of our parameter; classes and input channels are free."""
    free = 0 if key in HEAD else 1 if key == STEM else None
    sides = enumerate(zip(tensor.shape, like.shape, strict=False))
    return tensor.ndim == like.ndim and all(i == free or side == wanted for i, (side, wanted) in sides)


def complaints(missing: list[str], left_over: list[str]) -> str:
    """Describe which names of ours a state dict lacks, and which of its names are not ours."""
    parts = [f"missing {some(missing)}"] if missing else []
    return "; ".join([*parts, f"unknown or wrong shape {some(left_over)}"] if left_over else parts)


def some(texts: Iterable[str], most: int = 6) -> str:
    """Join the first few, each cut to a readable length and free of control characters: a file may hold any name."""
    texts = list(texts)
    more = len(texts) - most
    short = [text if len(text) <= 160 else f"{text[:80]}...{text[-80:]}" for text in texts[:most]]
    return ", ".join(ascii(text)[1:-1] for text in short) + (f" and {more} more" if more > 0 else "")

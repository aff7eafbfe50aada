"""Finding the MobileViT in a state dict: its layout, and what stands before its names."""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from .layouts import LAYOUTS, STEM, Source
from .matching import Subtree, fitting_architectures, some


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
    if prefix:
        prefix = prefix.rstrip(".") + "."
    layouts = {name: layout for name, layout in LAYOUTS.items() if source in ("auto", name)}
    places: dict[str, str] = {}  # prefix to layout
    for key in state_dict:
        for name, layout in layouts.items():
            place = layout.prefix(key)
            if place is not None and (not layout.landmark or key.removesuffix(STEM) + layout.landmark in state_dict):
                places[place] = name
                break  # the first layout that recognises it
    if prefix is not None:
        places = {place: name for place, name in places.items() if place == prefix}
    if len(places) > 1:  # other networks have such stems too
        fitting = {p: name for p, name in places.items() if fitting_architectures(_below(state_dict, p, name))}
        places = fitting or places
    if not places:
        where = "" if prefix is None else f" below {prefix!r}"
        raise ValueError(
            f"no layout of {', '.join(LAYOUTS) if source == 'auto' else source} has these parameter names{where}: "
            f"{some(list(state_dict)) or 'none at all'}; only checkpoints with a MobileViT can be converted"
        )
    if len(places) > 1:
        raise ValueError(
            f"there are several MobileViTs, below {' and '.join(map(repr, places))}; choose one with "
            f"prefix={min(places)!r} (`timm-mobilevit convert --prefix {min(places)}`)"
        )
    ((place, name),) = places.items()
    return _below(state_dict, place, name)


def _below(state_dict: Mapping[str, Tensor], prefix: str, source: str) -> Subtree:
    layout = LAYOUTS[source]
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

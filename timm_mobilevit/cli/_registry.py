"""Metadata of our models: their names and weights, and the sizes of a model built on the meta device."""

from dataclasses import asdict
from typing import Any

import timm
import torch

from .._nearest import suggestion
from ..variants import VARIANTS, get_variant
from ..weights.pretrained import WEIGHTS


def find_names(pattern: str = "", *, tags: bool = False) -> list[str]:
    """Return the names that match a pattern, from small to large within each generation.

    A pattern without wildcards matches what contains it. With ``tags``, the names are those of pretrained weights.

    Raises:
        ValueError: If nothing matches.

    Example:
        >>> find_names("v1")
        ['mobilevitv1_xxs', 'mobilevitv1_xs', 'mobilevitv1_s']
        >>> find_names("*_1_5.*22k*", tags=True)
        ['mobilevitv2_1_5.cvnets_in22k_ft_in1k', 'mobilevitv2_1_5.cvnets_in22k_ft_in1k_384']
    """
    known = list(WEIGHTS if tags else VARIANTS)
    wildcards = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = timm.list_models(wildcards, module="mobilevit_zoo", include_tags=tags)
    if not names:
        hint = suggestion(pattern, known, "`timm-mobilevit list` shows all")
        raise ValueError(f"nothing matches {pattern!r}; {hint}")
    return sorted(names, key=known.index)  # timm's own order is alphabetical: s, xs, xxs and 1_5 before 1_25


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a model into architecture and pretrained tag, which is empty if the name has none.

    Raises:
        ValueError: If there is no such architecture or tag; the message names the closest.

    Example:
        >>> split_name("mobilevitv1_s.cvnets_in1k")
        ('mobilevitv1_s', 'cvnets_in1k')
    """
    arch, _, tag = name.partition(".")
    get_variant(arch)
    tags = tags_of(arch)
    if tag and tag not in tags:
        raise ValueError(f"{arch} has no pretrained tag {tag!r}; it has {', '.join(tags)}")
    return arch, tag


def tags_of(arch: str) -> list[str]:
    """Return the pretrained tags of an architecture, the default first.

    Example:
        >>> tags_of("mobilevitv1_s")
        ['cvnets_in1k', 'cvnets_rangeaugment_in1k']
    """
    return [name.removeprefix(f"{arch}.") for name in WEIGHTS if name.startswith(f"{arch}.")]


def describe_model(arch: str) -> dict[str, Any]:
    """Return the number of parameters and the feature maps of an architecture, without allocating the parameters.

    Example:
        >>> describe_model("mobilevitv1_xxs")["parameters"]
        1272024
    """
    with torch.device("meta"):
        model = timm.create_model(arch)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "features": [{"channels": f["num_chs"], "stride": f["reduction"]} for f in model.feature_info],
    }


def describe_weights(name: str) -> dict[str, Any]:
    """Return the row of the pretrained table, with the paper spelled out.

    Example:
        >>> describe_weights("mobilevitv1_s.cvnets_in1k")["paper"]
        'arXiv:2110.02178'
    """
    row = WEIGHTS[name]
    cfg = row.to_cfg()
    return {"name": name, **asdict(row), "paper": cfg["paper_ids"], "paper_name": cfg["paper_name"]}

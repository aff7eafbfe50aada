"""The entry points that timm's registry lists: one per row of ``VARIANTS``.

timm files models under the last part of their module's name, so this module must not be called ``mobilevit``. It finds
the pretrained table by the name ``default_cfgs`` in this module.
"""

from typing import Any

from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, register_model

from .network.model import MobileViT, take_indices
from .variants import VARIANTS
from .weights.loading import checkpoint_filter_fn, resolve_weights
from .weights.pretrained import default_cfgs as default_cfgs  # timm looks it up here


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> MobileViT:
    if "out_indices" in kwargs:  # timm would fail with an IndexError, or return nothing
        take_indices(len(VARIANTS[variant].widths), kwargs["out_indices"])
    given = (kwargs.get("pretrained_cfg_overlay") or {}).get("state_dict")
    if pretrained:
        kwargs = resolve_weights(variant, **kwargs)
    elif overlay := kwargs.get("pretrained_cfg_overlay"):  # as `file` beside them, these have no effect then
        names = overlay.keys() - {"prefix", "entry"}
        kwargs["pretrained_cfg_overlay"] = {name: overlay[name] for name in names}
    model: Any = build_model_with_cfg(
        MobileViT,
        variant,
        pretrained,
        model_cfg=VARIANTS[variant],
        # timm changes this dictionary, so every call makes its own.
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True},
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
    if kwargs.get("img_size"):  # timm goes on recommending the size of the pretrained weights where models take any
        size = to_2tuple(kwargs["img_size"])
        model.pretrained_cfg["input_size"] = (model.pretrained_cfg["input_size"][0], *size)
    if not given:
        model.pretrained_cfg.pop("state_dict", None)  # what resolve_weights read; it would stay in memory twice
    return model  # type: ignore[no-any-return]


@register_model
def mobilevitv1_xxs(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv1-XXS."""
    return _create("mobilevitv1_xxs", pretrained, **kwargs)


@register_model
def mobilevitv1_xs(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv1-XS."""
    return _create("mobilevitv1_xs", pretrained, **kwargs)


@register_model
def mobilevitv1_s(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv1-S."""
    return _create("mobilevitv1_s", pretrained, **kwargs)


@register_model
def mobilevitv2_0_5(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 0.5."""
    return _create("mobilevitv2_0_5", pretrained, **kwargs)


@register_model
def mobilevitv2_0_75(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 0.75."""
    return _create("mobilevitv2_0_75", pretrained, **kwargs)


@register_model
def mobilevitv2_1_0(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 1.0."""
    return _create("mobilevitv2_1_0", pretrained, **kwargs)


@register_model
def mobilevitv2_1_25(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 1.25."""
    return _create("mobilevitv2_1_25", pretrained, **kwargs)


@register_model
def mobilevitv2_1_5(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 1.5."""
    return _create("mobilevitv2_1_5", pretrained, **kwargs)


@register_model
def mobilevitv2_1_75(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 1.75."""
    return _create("mobilevitv2_1_75", pretrained, **kwargs)


@register_model
def mobilevitv2_2_0(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv2 of width 2.0."""
    return _create("mobilevitv2_2_0", pretrained, **kwargs)


@register_model
def mobilevitv3_xxs(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3-XXS."""
    return _create("mobilevitv3_xxs", pretrained, **kwargs)


@register_model
def mobilevitv3_xs(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3-XS."""
    return _create("mobilevitv3_xs", pretrained, **kwargs)


@register_model
def mobilevitv3_s(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3-S."""
    return _create("mobilevitv3_s", pretrained, **kwargs)


@register_model
def mobilevitv3_xxs_l2(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3-XXS with two transformer layers instead of four in stage 4."""
    return _create("mobilevitv3_xxs_l2", pretrained, **kwargs)


@register_model
def mobilevitv3_xs_l2(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3-XS with two transformer layers instead of four in stage 4."""
    return _create("mobilevitv3_xs_l2", pretrained, **kwargs)


@register_model
def mobilevitv3_s_l2(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3-S with two transformer layers instead of four in stage 4."""
    return _create("mobilevitv3_s_l2", pretrained, **kwargs)


@register_model
def mobilevitv3_0_5(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3 of width 0.5."""
    return _create("mobilevitv3_0_5", pretrained, **kwargs)


@register_model
def mobilevitv3_0_75(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3 of width 0.75."""
    return _create("mobilevitv3_0_75", pretrained, **kwargs)


@register_model
def mobilevitv3_1_0(pretrained: bool = False, **kwargs: Any) -> MobileViT:
    """MobileViTv3 of width 1.0."""
    return _create("mobilevitv3_1_0", pretrained, **kwargs)

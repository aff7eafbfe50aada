"""How timm's model builder gets our weights: files of any recognised layout, and downloads that timm cannot make."""

from typing import Any

from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from .checkpoint import read_checkpoint, state_dict_of
from .convert import convert_state_dict, detect_source
from .pretrained import WEIGHTS, ChannelOrder


def resolve_weights(variant: str, **kwargs: Any) -> dict[str, Any]:
    """Read pretrained weights that come from a file, before timm builds the model.

    What only this package can download becomes a file, and a file becomes a state dict in our layout, which timm loads
    as it loads any other. The rest (Hugging Face Hub, local directories, state dicts) is left to timm.

    Args:
        variant: Name of the architecture.
        **kwargs: Arguments of ``timm.models.build_model_with_cfg``.

    Returns:
        The arguments, changed where needed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or no checkpoint of this architecture.
        WeightsNotAvailableError: If weights that only this package can download are not to be had.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    cfg = resolve_pretrained_cfg(
        variant, pretrained_cfg=kwargs.get("pretrained_cfg"), pretrained_cfg_overlay=overlay
    ).to_dict()
    if cfg.get("source") in ("hf-hub", "local-dir") or cfg.get("state_dict"):
        return kwargs
    name = f"{variant}.{cfg.get('tag')}"
    file = cfg.get("file")
    if not file and not cfg.get("hf_hub_id") and name in WEIGHTS and cfg.get("url") == WEIGHTS[name].url:
        from .fetch import fetch_weights  # only who downloads pays for the import

        file = fetch_weights(name, cache_dir=kwargs.get("cache_dir"))
    if not file:
        return kwargs
    try:
        state_dict = _convert(read_checkpoint(file), variant, cfg.get("tag"))
    except ValueError as error:
        raise ValueError(f"cannot load {file}: {error}") from error
    # timm compares these with the model's, to leave out the classifier and to adapt the first convolution. They also
    # are its defaults for the model, which must not depend on the file.
    kwargs.setdefault("num_classes", cfg["num_classes"])
    kwargs.setdefault("in_chans", cfg["input_size"][0])
    overlay |= {
        "state_dict": state_dict,
        "num_classes": len(state_dict.get("head.fc.weight", ())),
        "input_size": (state_dict["stem.conv.weight"].shape[1], *cfg["input_size"][1:]),
    }
    return {**kwargs, "pretrained_cfg_overlay": overlay}


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint of any recognised layout into ours: timm calls it between reading and loading.

    Raises:
        ValueError: If it is no checkpoint of the model's architecture.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return _convert(state_dict_of(state_dict), cfg["architecture"], cfg.get("tag"))


def _convert(state_dict: dict[str, Tensor], arch: str, tag: str | None) -> dict[str, Tensor]:
    """Convert to our layout.

    The row of the pretrained table names the order of the original file's input channels; a file that is in timm's
    layout is RGB already.
    """
    row = WEIGHTS.get(f"{arch}.{tag}")
    source = detect_source(state_dict)
    order: ChannelOrder | None = row.channel_order if row and source != "timm" else None
    return convert_state_dict(state_dict, arch, source, channel_order=order)

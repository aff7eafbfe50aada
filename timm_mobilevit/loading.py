"""How timm's model builder gets at our weights: any recognised file, and downloads that timm cannot make."""

from typing import Any

from timm.models import load_pretrained as timm_load_pretrained
from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from .checkpoint import read_checkpoint, state_dict_of
from .convert import convert_state_dict, detect_source
from .pretrained import WEIGHTS, ChannelOrder


def resolve_weights(variant: str, **kwargs: Any) -> dict[str, Any]:
    """Settle which file pretrained weights come from, before timm builds the model.

    Files are marked to be loaded by :func:`load_weights`, and what only this package can download becomes a file. The
    rest (Hugging Face Hub, local directories, state dicts) is left to timm.

    Args:
        variant: Name of the architecture.
        **kwargs: Arguments of ``timm.models.build_model_with_cfg``.

    Returns:
        The arguments, changed where needed.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    cfg = resolve_pretrained_cfg(
        variant, pretrained_cfg=kwargs.get("pretrained_cfg"), pretrained_cfg_overlay=overlay
    ).to_dict()
    if cfg.get("source") in ("hf-hub", "local-dir") or cfg.get("state_dict"):
        return kwargs
    name = f"{variant}.{cfg.get('tag')}"
    if not cfg.get("file") and not cfg.get("hf_hub_id") and name in WEIGHTS and cfg.get("url") == WEIGHTS[name].url:
        from .fetch import fetch_weights  # only who downloads pays for the import

        overlay["file"] = str(fetch_weights(name, cache_dir=kwargs.get("cache_dir")))
    if overlay.get("file") or cfg.get("file"):
        overlay["custom_load"] = True
        kwargs["pretrained_cfg_overlay"] = overlay
    return kwargs


def load_weights(model: Any, path: str) -> None:
    """Load a checkpoint file of any recognised layout into a model.

    A classifier of another number of classes than the model's is left out; a first convolution of other input channels
    is adapted as timm does.

    Args:
        model: The model, as ``timm.create_model`` is building it.
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or no checkpoint of this architecture.
    """
    try:
        state_dict = checkpoint_filter_fn(read_checkpoint(path), model)
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    head = state_dict.get("head.fc.weight")
    cfg = {
        **model.pretrained_cfg,
        "state_dict": state_dict,
        "custom_load": False,
        "num_classes": 0 if head is None else head.shape[0],
        "input_size": (state_dict["stem.conv.weight"].shape[1], *model.pretrained_cfg["input_size"][1:]),
    }
    timm_load_pretrained(model, cfg, num_classes=model.num_classes, in_chans=model.in_chans)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint of any recognised layout into ours: timm calls it between reading and loading.

    The model's pretrained row names the order of the original file's input channels; a file that is in timm's layout is
    RGB already.

    Raises:
        ValueError: If it is no checkpoint of the model's architecture.
    """
    state_dict = state_dict_of(state_dict)
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    arch = cfg["architecture"]
    row = WEIGHTS.get(f"{arch}.{cfg.get('tag')}")
    source = detect_source(state_dict)
    order: ChannelOrder | None = row.channel_order if row and source != "timm" else None
    state_dict = convert_state_dict(state_dict, arch, source, channel_order=order)
    check_classifier(state_dict)
    return state_dict


def check_classifier(state_dict: dict[str, Tensor]) -> None:
    """Refuse a classifier in our layout whose weights and biases are for different numbers of classes.

    Raises:
        ValueError: If they are; PyTorch would tell it only after all else has been loaded.
    """
    weights, biases = (len(state_dict.get(f"head.fc.{kind}", ())) for kind in ("weight", "bias"))
    if weights != biases:
        raise ValueError(f"the classifier has weights for {weights} classes, but biases for {biases}")

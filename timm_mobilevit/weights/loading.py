"""How timm's model builder gets our weights: files of any recognised layout, and downloads that timm cannot make."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from ..convert import convert_state_dict
from ..convert.layouts import ChannelOrder, Source
from ..convert.matching import missing_end
from ..convert.subtree import find_subtree
from .checkpoint import checkpoint_of, open_checkpoint
from .pretrained import WEIGHTS

_logger = logging.getLogger(__name__)
_file_only: ContextVar[bool] = ContextVar("_file_only", default=False)


@contextmanager
def from_the_file_only() -> Iterator[None]:
    """Refuse pretrained weights that leave anything in a model as it was initialised.

    For fine-tuning, timm leaves parts that the weights lack as they were initialised: the classifier for other classes,
    or the last stages if the weights are those of a backbone. In this context that is an error.

    Example:
        >>> import tempfile, timm, timm_mobilevit, torch
        >>> file = f"{tempfile.mkdtemp()}/backbone.pth"
        >>> torch.save(timm.create_model("mobilevitv3_xxs", num_classes=0).state_dict(), file)
        >>> with from_the_file_only():
        ...     model = timm.create_model("mobilevitv3_xxs", pretrained=True, pretrained_cfg_overlay={"file": file})
        Traceback (most recent call last):
        ...
        ValueError: the weights of mobilevitv3_xxs are not complete: head.fc.weight, head.fc.bias would stay random
    """
    token = _file_only.set(True)
    try:
        yield
    finally:
        _file_only.reset(token)


def resolve_weights(variant: str, **kwargs: Any) -> dict[str, Any]:
    """Read pretrained weights that come from a file, before timm builds the model.

    What only this package can download becomes a file, and a file becomes a state dict in our layout, which timm loads
    as it loads any other. The rest (Hugging Face Hub, local directories, state dicts) is left to timm.

    Args:
        variant: Name of the architecture.
        **kwargs: Arguments of ``timm.models.build_model_with_cfg``. Beside ``file``, ``pretrained_cfg_overlay`` may
            have ``prefix`` and ``entry``, as :func:`read_weights` takes them.

    Returns:
        The arguments, changed where needed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or no checkpoint of this architecture.
        WeightsNotAvailableError: If weights that only this package can download cannot be downloaded.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    choice = {name: overlay.pop(name) for name in ("prefix", "entry") if name in overlay}
    cfg = resolve_pretrained_cfg(
        variant, pretrained_cfg=kwargs.get("pretrained_cfg"), pretrained_cfg_overlay=overlay
    ).to_dict()
    if choice and (cfg.get("state_dict") or not cfg.get("file") or cfg.get("source") in ("hf-hub", "local-dir")):
        raise ValueError(
            f"{' and '.join(choice)} in pretrained_cfg_overlay choose in a file: name it as file beside them"
        )
    if cfg.get("source") in ("hf-hub", "local-dir") or cfg.get("state_dict"):
        return kwargs
    name = f"{variant}.{cfg.get('tag')}"
    file = cfg.get("file")
    if not file and not cfg.get("hf_hub_id") and name in WEIGHTS and cfg.get("url") == WEIGHTS[name].url:
        from .fetch import fetch_weights  # imported for downloads only: it is slow

        file = fetch_weights(name, cache_dir=kwargs.get("cache_dir"))
    if not file:
        return kwargs
    state_dict = read_weights(file, variant, cfg.get("tag"), **choice)
    classes = len(state_dict.get("head.fc.weight", ()))
    # With another num_classes the classifier is new; without it, the classes are those of the file, as in timm.
    if "num_classes" not in kwargs and not kwargs.get("features_only") and classes not in (0, cfg["num_classes"]):
        raise ValueError(
            f"{file} has {classes} classes, and the model would have {cfg['num_classes']}: pass num_classes={classes} "
            f"to keep the classifier of the file, or num_classes={cfg['num_classes']} to begin with a new one"
        )
    # timm compares these with the model's, to leave out the classifier and to adapt the first convolution. They also
    # are its defaults for the model, which must not depend on the file.
    kwargs.setdefault("num_classes", cfg["num_classes"])
    kwargs.setdefault("in_chans", cfg["input_size"][0])
    overlay |= {
        "state_dict": state_dict,
        "num_classes": classes,
        "input_size": (state_dict["stem.conv.weight"].shape[1], *cfg["input_size"][1:]),
    }
    return {**kwargs, "pretrained_cfg_overlay": overlay}


def read_weights(
    file: str | Path, arch: str, tag: str | None = None, *, prefix: str | None = None, entry: str | None = None
) -> dict[str, Tensor]:
    """Read a checkpoint file into our layout.

    Args:
        file: File in any recognised layout.
        arch: Architecture.
        tag: Pretrained tag whose order of input channels the file has; None for the known order of its layout.
        prefix: What stands before the names of the model in the file, as ``convert_state_dict`` takes it.
        entry: The entry of the file that holds the weights, as ``read_checkpoint`` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or no checkpoint of this architecture.
    """
    try:
        checkpoint = open_checkpoint(file, entry)
        if checkpoint.choice:
            _logger.info("%s: %s", file, checkpoint.choice)
        return to_our_layout(checkpoint.state_dict, arch, tag, prefix=prefix)
    except ValueError as error:
        raise ValueError(f"cannot load {file}: {error}") from error


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint of any recognised layout into ours: timm calls it between reading and loading.

    The end of the model that a backbone's checkpoint lacks stays as it was initialised, and the log says so.

    Raises:
        ValueError: If it is no checkpoint of the model's architecture.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    weights = to_our_layout(checkpoint_of(state_dict).state_dict, cfg["architecture"], cfg.get("tag"))
    initial = model.state_dict()
    if _file_only.get():
        other = [key for key, value in initial.items() if key not in weights or weights[key].shape != value.shape]
        if other:
            raise ValueError(
                f"the weights of {cfg['architecture']} are not complete: {', '.join(other[:6])} would stay random"
            )
    classes, own = (len(entries.get("head.fc.weight", ())) for entries in (weights, initial))
    if classes == own:
        cfg["num_classes"] = own  # timm would leave the classifier out where a config.json says another number
    elif classes and own == getattr(model, "pretrained_model_args", {}).get("num_classes"):
        _logger.warning(
            "the weights have %d classes, but the model_args beside them say %d: the classifier is new", classes, own
        )
    rest = [key for key in missing_end(weights, cfg["architecture"]) if key in initial]
    if rest and not rest[0].startswith("head."):  # a new classifier needs no warning
        _logger.warning(
            "the checkpoint is of a backbone: from %s on, the model stays as it was initialised",
            rest[0].rpartition(".")[0],
        )
    return weights | {key: initial[key] for key in rest}


def to_our_layout(
    state_dict: dict[str, Tensor],
    arch: str,
    tag: str | None = None,
    source: Source | Literal["auto"] = "auto",
    channel_order: ChannelOrder | None = None,
    prefix: str | None = None,
) -> dict[str, Tensor]:
    """Convert as ``convert_state_dict`` does, in the channel order that the row of the pretrained table names.

    The row is of the original file; one that is in timm's layout is RGB already.
    """
    row = WEIGHTS.get(f"{arch}.{tag}")
    subtree = find_subtree(state_dict, source, prefix)
    if channel_order is None and row and subtree.source != "timm":
        channel_order = row.channel_order
    return convert_state_dict(state_dict, arch, subtree.source, channel_order, subtree.prefix)

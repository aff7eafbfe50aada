"""Models from checkpoint files of any recognised format, and from the directories that ``convert`` writes."""

import json
from pathlib import Path
from typing import Any, Literal

import timm
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from timm_mobilevit.export.runtimes import ExportedModel
from timm_mobilevit.formats import is_exported
from timm_mobilevit.weights.checkpoint import read_checkpoint
from timm_mobilevit.weights.convert import (
    Source,
    Subtree,
    convert_state_dict,
    find_subtree,
    fitting_architectures,
    missing_end,
)
from timm_mobilevit.weights.pretrained import WEIGHTS, ChannelOrder

from ._registry import split_name


def model_from_file(
    path: Path,
    arch: str = "",
    *,
    tag: str = "",
    source: Source | Literal["auto"] = "auto",
    channel_order: ChannelOrder | None = None,
    prefix: str | None = None,
    entry: str | None = None,
) -> nn.Module:
    """Build a model that fits a checkpoint file, and load the file into it.

    Input channels and classes are those of the file: a file without a classifier gives a model without one, and a file
    of a detector's backbone a model that ends with its last stage.

    Args:
        path: Checkpoint in any format that ``timm_mobilevit.weights.convert`` knows.
        arch: Architecture of the checkpoint; empty for the one that fits.
        tag: Pretrained tag whose preprocessing, and order of input channels, the model takes over; empty for the
            preprocessing of the architecture's default.
        source: Format of the file, as ``convert_state_dict`` takes it.
        channel_order: Order of the file's input channels; None for that of the tag, or else the known order of the
            format and architecture.
        prefix: What stands before the model's names in the file; None finds it.
        entry: The entry of the file that holds the weights; None for the one that its trainer evaluates.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds something else than this architecture.
    """
    state_dict = read_checkpoint(path, entry)
    try:
        subtree = find_subtree(state_dict, source, prefix)
        arch = arch or the_architecture(subtree)
        if channel_order is None and tag and subtree.source != "timm":  # what is in timm's layout takes RGB already
            channel_order = WEIGHTS[f"{arch}.{tag}"].channel_order
        state_dict = convert_state_dict(state_dict, arch, subtree.source, channel_order, subtree.prefix)
        head = state_dict.get("head.fc.weight")
        model: Any = timm.create_model(
            f"{arch}.{tag}" if tag else arch,
            num_classes=0 if head is None else head.shape[0],
            in_chans=state_dict["stem.conv.weight"].shape[1],
        )
        if any(not key.startswith("head.") for key in missing_end(state_dict, arch)):
            last = max(int(key.split(".")[1]) for key in state_dict if key.startswith("stages."))
            model.prune_intermediate_layers([last], prune_norm=True)
        model.load_state_dict(state_dict)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    return model  # type: ignore[no-any-return]


def the_architecture(subtree: Subtree) -> str:
    """The one architecture that a MobileViT fits.

    Raises:
        ValueError: If none or several do.
    """
    fits = fitting_architectures(subtree)
    if len(fits) != 1:
        raise ValueError(
            f"it could be any of {', '.join(fits)}: name one with --arch"
            if fits
            else f"its names are those of {subtree.source}, but no architecture of ours has all of them in these shapes"
        )
    return fits[0]


def architecture_of_directory(path: Path) -> str:
    """The architecture that a directory's ``config.json`` names.

    Raises:
        FileNotFoundError: If there is no ``config.json``.
        ValueError: If it does not describe a model of this package.
    """
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no config.json; expected a directory written by `timm-mobilevit convert` "
            "or timm.models.save_for_hf, or a checkpoint file"
        )
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        name = config["architecture"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is not the configuration of a timm model: expected JSON with 'architecture'"
        ) from error
    return split_name(str(name))[0]


def model_from_directory(path: Path) -> nn.Module:
    """Load the model that a directory with ``config.json`` and weights holds.

    Raises:
        FileNotFoundError: If there is no ``config.json``.
        ValueError: If the configuration or the weights cannot be read.
        RuntimeError: If there are no weights, or they do not fit.
    """
    architecture_of_directory(path)
    try:
        model: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True)
    except SafetensorError as error:
        raise ValueError(f"the weights in {path} cannot be read, perhaps they are truncated: {error}") from error
    return model


def load_model(name: str, checkpoint: Path | None, pretrained: bool) -> nn.Module:
    """Build the model that a command is about.

    Args:
        name: ``architecture`` or ``architecture.tag``; may be empty for a directory or an exported file.
        checkpoint: File or directory with the weights, or a file that `export` wrote; None for the published ones.
        pretrained: Whether to load the published weights where there is no checkpoint.

    Raises:
        FileNotFoundError: If the weights are neither there nor to be had.
        ValueError: If they cannot be read, or are another architecture's.
    """
    if checkpoint and is_exported(checkpoint):
        if name:
            raise ValueError(f"{checkpoint} says itself what it is: leave out {name}")
        return ExportedModel(checkpoint)
    if checkpoint and checkpoint.is_dir():
        arch = architecture_of_directory(checkpoint)
        if name and split_name(name)[0] != arch:
            raise ValueError(f"{checkpoint} holds {arch}, not {name}")
        return model_from_directory(checkpoint)
    arch, tag = split_name(name)
    if checkpoint:
        return model_from_file(checkpoint, arch, tag=tag)
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained)
    except LocalEntryNotFoundError as error:  # its message names neither the model nor a way out
        raise FileNotFoundError(
            f"the weights of {name} are not in the cache and cannot be downloaded; connect to the internet, or name a "
            "file that you have with --checkpoint"
        ) from error
    return network

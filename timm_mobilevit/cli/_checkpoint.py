"""Models from checkpoint files of any recognised format, and from the directories that ``convert`` writes."""

import json
from pathlib import Path
from typing import Any, Literal

import timm
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from timm_mobilevit.weights.checkpoint import read_checkpoint
from timm_mobilevit.weights.convert import Source, convert_state_dict, detect_source
from timm_mobilevit.weights.pretrained import WEIGHTS, ChannelOrder

from ._registry import split_name


def model_from_file(
    path: Path,
    arch: str,
    *,
    tag: str = "",
    source: Source | Literal["auto"] = "auto",
    channel_order: ChannelOrder | None = None,
) -> nn.Module:
    """Build a model that fits a checkpoint file, and load the file into it.

    Input channels and classes are those of the file: a file without a classifier gives a model without one.

    Args:
        path: Checkpoint in any format that ``timm_mobilevit.weights.convert`` knows.
        arch: Architecture of the checkpoint.
        tag: Pretrained tag whose preprocessing, and order of input channels, the model takes over; empty for the
            preprocessing of the architecture's default.
        source: Format of the file, as ``convert_state_dict`` takes it.
        channel_order: Order of the file's input channels; None for that of the tag, or else the known order of the
            format and architecture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds something else than this architecture.
    """
    state_dict = read_checkpoint(path)
    try:
        if source == "auto":
            source = detect_source(state_dict)
        if channel_order is None and tag and source != "timm":  # what is in timm's layout takes RGB already
            channel_order = WEIGHTS[f"{arch}.{tag}"].channel_order
        state_dict = convert_state_dict(state_dict, arch, source, channel_order)
        head = state_dict.get("head.fc.weight")
        model: nn.Module = timm.create_model(
            f"{arch}.{tag}" if tag else arch,
            num_classes=0 if head is None else head.shape[0],
            in_chans=state_dict["stem.conv.weight"].shape[1],
        )
        model.load_state_dict(state_dict)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    return model


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
        name: ``architecture`` or ``architecture.tag``; may be empty for a directory.
        checkpoint: File or directory with the weights; None for the published ones.
        pretrained: Whether to load the published weights where there is no checkpoint.

    Raises:
        FileNotFoundError: If the weights are neither there nor to be had.
        ValueError: If they cannot be read, or are another architecture's.
    """
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

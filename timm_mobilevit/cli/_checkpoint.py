"""Models from checkpoint files of any recognised format, and from the directories that ``convert`` writes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import timm
import torch
import typer
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn

from timm_mobilevit.configs import find_config
from timm_mobilevit.convert.layouts import ChannelOrder, Source
from timm_mobilevit.convert.matching import missing_end, the_architecture
from timm_mobilevit.convert.subtree import find_subtree
from timm_mobilevit.export.formats import is_exported
from timm_mobilevit.export.runtimes import ExportedModel
from timm_mobilevit.weights.checkpoint import Checkpoint, open_checkpoint
from timm_mobilevit.weights.directory import CONFIG, read_directory, settings_of_training
from timm_mobilevit.weights.loading import from_the_file_only, to_our_layout

from ._registry import split_name

Loaded = TypeVar("Loaded")


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
    of a detector's backbone a model that ends with its last stage. An empty ``arch`` is found by the weights. The model
    takes over the preprocessing of ``tag``, or else what timm's ``train.py`` was told, and the rest of the
    architecture's default. The other arguments are as for ``to_our_layout`` and ``read_checkpoint``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds something else than this architecture.
    """
    checkpoint = _open_saying_which(path, entry)
    try:
        arch = arch or the_architecture(find_subtree(checkpoint.state_dict, source, prefix))
        weights = to_our_layout(checkpoint.state_dict, arch, tag, source, channel_order, prefix)
        cfg, args = settings_of_training({} if tag else checkpoint.options, weights["stem.conv.weight"].shape[1])
        model: Any = _build(f"{arch}.{tag}" if tag else arch, arch, weights, **args)
    except (ValueError, RuntimeError, KeyError) as error:  # KeyError: timm knows no such activation
        raise ValueError(f"cannot load {path}: {error}") from error
    model.pretrained_cfg.update(cfg)
    if told := ", ".join(f"{key} {value}" for key, value in (cfg | args).items()):
        typer.echo(f"{path}: taken from its training: {told}", err=True)
    return model  # type: ignore[no-any-return]


def model_from_directory(path: Path, name: str = "") -> nn.Module:
    """Load the model that a directory with ``config.json`` and weights holds.

    Raises:
        FileNotFoundError: If there is no ``config.json``, or there are no weights.
        ValueError: If the configuration or the weights cannot be read, contradict each other, or are of another
            architecture than ``name``.
    """
    directory = read_directory(path)
    if name and split_name(name)[0] != directory.arch:
        raise ValueError(f"{path} holds {directory.arch}, not {name}")
    try:
        model = _build(f"local-dir:{path}", directory.arch, directory.state_dict)
    except Exception as error:  # options of any type and value reach timm's builder and PyTorch
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"model_args in {path / CONFIG} do not give the model of these weights: {reason}") from error
    if directory.num_features not in (None, model.num_features):
        raise ValueError(
            f"{path / CONFIG} says {directory.num_features} in num_features, but the weights have {model.num_features}"
        )
    return model


def _build(name: str, arch: str, weights: dict[str, Tensor], **args: Any) -> nn.Module:
    """Build a model of the classes and channels that weights have: every parameter comes from them.

    If they lack the end of the model, as those of a detector's backbone do, the model loses that end too.
    """
    classes, channels = len(weights.get("head.fc.weight", ())), weights["stem.conv.weight"].shape[1]
    model: Any = timm.create_model(name, num_classes=classes, in_chans=channels, **args)
    if any(not key.startswith("head.") for key in missing_end(weights, arch)):
        last = max(int(key.split(".")[1]) for key in weights if key.startswith("stages."))
        model.prune_intermediate_layers([last], prune_norm=True)
    model.load_state_dict(weights)
    return model  # type: ignore[no-any-return]


def read_saying_which(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the weights in a checkpoint file; if several entries hold some, say on stderr which one is taken."""
    return _open_saying_which(path, entry).state_dict


def _open_saying_which(path: Path, entry: str | None) -> Checkpoint:
    checkpoint = open_checkpoint(path, entry)
    if checkpoint.choice:
        typer.echo(f"{path}: {checkpoint.choice}", err=True)
    return checkpoint


def load_dense(load: Callable[..., Loaded], config: str, checkpoint: Path | None, entry: str | None) -> Loaded:
    """Build the network of a config with the weights of a checkpoint file, or with the same random ones each time.

    ``load`` builds it from the config and a state dict or None.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If they do not belong together.
    """
    find_config(config)  # a wrong name is reported before a large file is read
    if checkpoint is None:
        with fixed_seed():
            return load(config, None)
    state_dict = read_saying_which(checkpoint, entry)
    try:
        return load(config, state_dict)
    except ValueError as error:
        raise ValueError(f"cannot load {checkpoint}: {error}") from error


def forget_origin(model: Any) -> None:
    """Remove from the configuration of a model what is true of the published weights alone."""
    for key in ("tag", "license", "origin_url"):
        model.pretrained_cfg.pop(key, None)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Make random weights the same each time; the state of the global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def load_model(
    name: str,
    checkpoint: Path | None,
    pretrained: bool,
    entry: str | None = None,
    channel_order: ChannelOrder | None = None,
) -> nn.Module:
    """Build the model that a command is about.

    Args:
        name: ``architecture`` or ``architecture.tag``; may be empty for a directory or an exported file.
        checkpoint: File or directory with the weights, or a file that `export` wrote; None for the published ones.
        pretrained: Whether these are wanted; otherwise the weights are random, the same each time.
        entry: As :func:`model_from_file`.
        channel_order: As :func:`model_from_file`.

    Raises:
        FileNotFoundError: If the weights are neither there nor can be downloaded.
        ValueError: If they cannot be read, are another architecture's or incomplete, or ``entry`` is given for weights
            without entries.
    """
    is_file = checkpoint is not None and not checkpoint.is_dir() and not is_exported(checkpoint)
    if entry is not None and not is_file:
        raise ValueError("--entry chooses between the weights in a checkpoint file: name one with --checkpoint")
    if checkpoint and is_exported(checkpoint):
        if name:
            raise ValueError(f"{checkpoint} says itself what it is: leave out {name}")
        return ExportedModel(checkpoint)
    if checkpoint and checkpoint.is_dir():
        return model_from_directory(checkpoint, name)
    arch, tag = split_name(name)
    if checkpoint:
        return model_from_file(checkpoint, arch, tag=tag, channel_order=channel_order, entry=entry)
    if not pretrained:
        with fixed_seed():
            return timm.create_model(name)  # type: ignore[no-any-return]
    try:
        with from_the_file_only():
            network: nn.Module = timm.create_model(name, pretrained=True)
    except LocalEntryNotFoundError as error:  # its message names neither the model nor a remedy
        raise FileNotFoundError(
            f"the weights of {name} are not in the cache and cannot be downloaded; connect to the internet, or name a "
            "file that you have with --checkpoint"
        ) from error
    except (ValueError, OSError, RuntimeError, ImportError):
        raise
    except Exception as error:  # of a client for HTTP that changes with the major versions of huggingface_hub
        raise OSError(f"cannot load the weights of {name}: {type(error).__name__}: {error}; try again") from error
    return network

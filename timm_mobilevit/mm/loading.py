"""Detectors and segmentors from a config and a checkpoint; no code in the checkpoint runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from ..configs import find_config
from ..convert.layouts import ChannelOrder
from ..weights.checkpoint import read_checkpoint
from ._building import build_model
from .convert import STEM, convert_state_dict


def load_model(
    config: str | Path,
    checkpoint: str | Path | Mapping[str, Tensor] | None = None,
    channel_order: ChannelOrder | None = None,
) -> tuple[Any, Config]:
    """Build the model of a config and load its weights.

    Args:
        config: A file, or the name of an installed config.
        checkpoint: Weights, in the names of mmdet and mmseg or as CVNets, CoreNet or MobileViTv3 publish them: a file,
            or a state dict that was read. Every parameter comes from it. None leaves them random.
        channel_order: Order of the input channels that the file was trained with; None takes the known one.

    Returns:
        The model, in eval mode, and the parsed config.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config is for no model over our backbones, or the weights are not its own.
    """
    path = find_config(config)
    cfg = Config.fromfile(path)
    model = build_model(cfg, str(path))
    if checkpoint is not None:
        state_dict = dict(checkpoint) if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        if not any(key.startswith("backbone.") for key in state_dict):
            state_dict = convert_state_dict(state_dict, model, channel_order)
        elif channel_order == "bgr" and STEM in state_dict:
            state_dict[STEM] = state_dict[STEM].flip(1)
        try:
            model.load_state_dict(state_dict)
        except RuntimeError as error:
            name = "the state dict" if isinstance(checkpoint, Mapping) else checkpoint
            raise ValueError(f"{name} does not hold the weights of {path.name}: {error}") from error
    return model.eval(), cfg

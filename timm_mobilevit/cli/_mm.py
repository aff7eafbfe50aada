"""Writing checkpoints that MMDetection's and MMSegmentation's tools load."""

from pathlib import Path

import torch

from .._files import replacing
from ..configs import find_config
from ..convert.layouts import ChannelOrder
from ._checkpoint import read_saying_which


def write_mm_checkpoint(
    src: Path,
    config: str,
    out: Path,
    *,
    channel_order: ChannelOrder | None = None,
    entry: str | None = None,
) -> None:
    """Convert a detection or segmentation checkpoint for the model of a config.

    Args:
        src: Checkpoint of CVNets, CoreNet or MobileViTv3, or of a training with the config.
        config: Config of the detector or segmentor, a file or the name of an installed one.
        out: File to write; an existing one is replaced.
        channel_order: Order of the checkpoint's input channels, where it is not the known one.
        entry: The entry of the file that holds the weights, as ``read_checkpoint`` takes it.

    Raises:
        ImportError: If the extra that the config needs, seg or det, is not installed.
        ValueError: If the checkpoint does not belong to the config.
        FileNotFoundError: If a file is missing.
    """
    path = find_config(config)
    from ..mm.convert import dataset_meta
    from ..mm.loading import load_model

    model, cfg = load_model(path, read_saying_which(src, entry).state_dict, channel_order)
    # What mmdet's and mmseg's inferencers label and colour their results by.
    content = {"state_dict": model.state_dict(), "meta": {"dataset_meta": dataset_meta(cfg)}}
    with replacing(out) as temporary:
        torch.save(content, temporary)

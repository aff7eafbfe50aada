"""What a download of weights must leave behind, and what it must say when it fails."""

import functools
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from archives import zipped
from safetensors.torch import load_file
from torch import Tensor

import timm_mobilevit
from timm_mobilevit.convert import convert_state_dict
from timm_mobilevit.convert.layouts import ChannelOrder
from timm_mobilevit.weights.fetch import CHECKPOINT, WeightsNotAvailableError, fetch_weights
from timm_mobilevit.weights.pretrained import WEIGHTS

MICRON = "mobilevitv3_xxs.micron_in1k"
FOLDER = WEIGHTS[MICRON].folder
MEMBER = f"models/MobileViTv3-v1/results_classification/{FOLDER}/{CHECKPOINT}"
APPLE_ROW = next(name for name, row in WEIGHTS.items() if row.url and row.url.endswith("/mobilevitv2-0.5.pt"))


def read(content: bytes) -> dict[str, Tensor]:
    return torch.load(io.BytesIO(content), weights_only=True)


@functools.cache
def models(checkpoint: bytes) -> bytes:
    """The release's archive, with one model in it."""
    return zipped({"models/logs.txt": bytes(10_000), MEMBER: checkpoint, "README.md": b"hello"}, compression=0)


@functools.cache
def converted(content: bytes, arch: str, channel_order: ChannelOrder) -> dict[str, Tensor]:
    return convert_state_dict(read(content), arch, "cvnets", channel_order)


def assert_weights(path: Path, checkpoint: bytes, name: str = MICRON) -> dict[str, object]:
    """The file holds the converted checkpoint, and the record beside it is right; returns the record."""
    ours, row = load_file(path), WEIGHTS[name]
    expected = converted(checkpoint, name.partition(".")[0], row.channel_order)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["checkpoint_sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (record["origin"], record["license"]) == (row.origin, row.license)
    assert record["package_version"] == timm_mobilevit.__version__
    assert {file.name for file in path.parent.iterdir()} == {"model.safetensors", "model.json"}
    return record


def assert_nothing_left(cache: Path) -> None:
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.name != "lock"] == []


def unavailable(cache: Path, name: str = MICRON) -> str:
    with pytest.raises(WeightsNotAvailableError) as caught:
        fetch_weights(name, cache)
    message = str(caught.value)
    # Whatever went wrong, it says how to go on by hand.
    assert message.startswith(f"the pretrained weights {name} are not available")
    assert "by hand" in message
    assert "TIMM_MOBILEVIT_WEIGHTS=DIR" in message
    assert "pretrained_cfg_overlay=dict(file=" in message
    return message

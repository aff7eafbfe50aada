"""Pretrained weights that timm's hub repositories do not hold: found, downloaded, converted and cached.

Apple's are plain files. Micron's (MobileViTv3) are assets of a GitHub release, of which only the models' folders are
known: the release is asked at run time.
"""

import difflib
import functools
import logging
import os
import shutil
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from ..checkpoint import read_checkpoint
from ..convert import convert_state_dict
from ..pretrained import WEIGHTS, Weights
from . import tree as _tree
from .naming import CHECKPOINT
from .release import from_release
from .store import Entry, Source
from .transfer import discard, download

__all__ = ["WeightsNotAvailableError", "fetch_weights"]

_logger = logging.getLogger(__name__)


class WeightsNotAvailableError(RuntimeError):
    """Pretrained weights could not be had. The message says what was tried and what to do."""


def fetch_weights(name: str, cache_dir: str | Path | None = None) -> Path:
    """Get a set of pretrained weights that is published outside the hub, in this package's layout.

    Looked for, in this order: in the directory that ``TIMM_MOBILEVIT_WEIGHTS`` names, in the cache, at the origin.
    Once cached, no request is made. Beside the file a JSON of the same name says where it came from, with checksums
    and licence. Any number of processes may call at the same time.

    Args:
        name: ``arch.tag`` of a row of ``timm_mobilevit.weights.pretrained.WEIGHTS`` that has a ``url``.
        cache_dir: Directory to cache in; by default the assets directory of the hub's cache (``HF_ASSETS_CACHE``).

    Returns:
        Path of a safetensors file.

    Raises:
        ValueError: If there is no such row, or it is one that timm loads from the hub.
        NotADirectoryError: If ``TIMM_MOBILEVIT_WEIGHTS`` names no directory.
        WeightsNotAvailableError: If the weights cannot be had, or what was found is broken or of another model.

    Example:
        >>> fetch_weights("mobilevitv3_xxs.micron_in1k")  # doctest: +SKIP
        PosixPath('~/.cache/huggingface/assets/timm-mobilevit/weights/mobilevitv3_xxs.micron_in1k/model.safetensors')
        >>> fetch_weights("mobilevitv1_xs.cvnets_in1k")
        Traceback (most recent call last):
        ...
        ValueError: timm loads mobilevitv1_xs.cvnets_in1k from the hub (timm/mobilevit_xs.cvnets_in1k): use
        timm.create_model('mobilevitv1_xs.cvnets_in1k', pretrained=True)
    """
    row = _row(name)
    _log_licence(row.license, row.origin)
    tree = _tree.weights_tree()
    tried: list[str] = []
    try:
        entry = Entry(name, row, Path(cache_dir).expanduser() if cache_dir is not None else None)
        # Without the lock first: a shared cache may be read-only.
        if found := entry.find(tree):
            return found
        entry.directory.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(entry.lock):
            try:
                shutil.rmtree(entry.work, ignore_errors=True)  # of a process that was killed
                entry.work.mkdir()
                return _fetch(entry, tree, tried)
            finally:
                shutil.rmtree(entry.work, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise WeightsNotAvailableError(_advice(name, row, [*tried, str(error)])) from error


def _fetch(entry: Entry, tree: Path | None, tried: list[str]) -> Path:
    if found := entry.find(tree):  # another process may have fetched it by now
        return found
    if tree is not None:
        if source := _tree.from_tree(entry.row, tree, entry.work):
            return _convert(entry, source)
        tried.append(f"{_tree.VARIABLE}={tree}: not in it")
        _logger.info("%s is not in %s=%s", entry.name, _tree.VARIABLE, tree)
        if found := entry.find():
            return found
    if entry.record.exists():
        _logger.warning("%s is broken or out of date: fetching it again", entry.weights)
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, and it is not in the cache")
    return _convert(entry, _from_origin(entry))


def _from_origin(entry: Entry) -> Source:
    assert entry.row.url is not None
    if entry.row.folder is not None:
        return from_release(entry.row.url, entry.row.folder, entry.part, entry.work)
    _logger.info("Downloading %s from %s", entry.name, entry.row.url)
    download(entry.row.url, entry.part)
    checkpoint = entry.work / "checkpoint.pt"
    os.replace(entry.part, checkpoint)
    return Source(checkpoint, url=entry.row.url, asset=entry.row.url.rpartition("/")[2])


def _convert(entry: Entry, source: Source) -> Path:
    arch, row = entry.name.partition(".")[0], entry.row
    try:
        state_dict = read_checkpoint(source.checkpoint)
        state_dict = convert_state_dict(state_dict, arch, source="cvnets", channel_order=row.channel_order)
        classes = len(state_dict.get("head.fc.weight", ()))
        if classes != row.num_classes:
            raise ValueError(f"expected a classifier of {row.num_classes} classes, got {classes}")
    except ValueError as error:
        origin = source.file or source.url
        raise ValueError(f"{origin}{f' ({source.member})' if source.member else ''}: {error}") from error
    path = entry.save(state_dict, source)
    discard(entry.part)  # of an earlier call that was cut off, where the checkpoint now came from elsewhere
    return path


def _row(name: str) -> Weights:
    row = WEIGHTS.get(name)
    if row is None:
        close = difflib.get_close_matches(name, WEIGHTS, n=3) or sorted(key for key in WEIGHTS if WEIGHTS[key].url)
        raise ValueError(f"no pretrained weights {name!r}; did you mean {', '.join(close)}?")
    if row.url is None:
        raise ValueError(
            f"timm loads {name} from the hub ({row.hf_hub_id}): use timm.create_model({name!r}, pretrained=True)"
        )
    return row


@functools.cache
def _log_licence(license: str, origin: str) -> None:
    """Once per process: the call is cached."""
    if "non-commercial" in license:
        _logger.warning(
            "The weights from %s are for non-commercial use only (%s): read their licence before you use them.",
            origin,
            license,
        )


def _advice(name: str, row: Weights, tried: list[str]) -> str:
    if row.folder is not None:
        by_hand = f"download {row.folder} from {row.url} by hand, unpack it into a directory DIR"
        file = f"DIR/{row.folder}/{CHECKPOINT}"
    else:
        assert row.url is not None
        tail = _tree.tail(row.url)
        by_hand = f"download {row.url} by hand to DIR/{tail}"
        file = f"DIR/{tail}"
    lines = "".join(f"\n  tried: {line}" for line in tried)
    return (
        f"the pretrained weights {name} are not available{lines}\n"
        f"  to do: {by_hand} and set {_tree.VARIABLE}=DIR, or pass pretrained_cfg_overlay=dict(file='{file}')"
    )

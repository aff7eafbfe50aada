"""Pretrained weights that timm's hub repositories do not hold: found, downloaded, converted and cached.

Apple's are plain files. Micron's (MobileViTv3) are folders in an archive of a GitHub release.
"""

import difflib
import functools
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from torch import Tensor

from ..checkpoint import read_checkpoint
from ..convert import convert_state_dict
from ..pretrained import WEIGHTS, Weights
from .release import KNOWN, from_release, tidy
from .store import Entry, Source
from .transfer import download
from .tree import VARIABLE, from_tree, path_of, weights_tree

__all__ = ["WeightsNotAvailableError", "fetch_weights"]

_logger = logging.getLogger(__name__)


class WeightsNotAvailableError(RuntimeError):
    """Pretrained weights could not be fetched. The message says what was tried and what to do."""


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
        WeightsNotAvailableError: If the weights cannot be found or downloaded, or are broken or of another model.

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
    cache = Path(cache_dir).expanduser() if cache_dir is not None else None
    tree = weights_tree()
    tried: list[str] = []
    try:
        entry = Entry(name, row, cache)
        # Without the lock and without writing anything first: a shared cache may be read-only.
        if tree is None and (found := entry.find()):
            return found
        with TemporaryDirectory() as work:
            source = from_tree(row, tree, Path(work)) if tree else None
            if tree and not source:
                tried.append(f"{VARIABLE}={tree}: not in it")
            if found := entry.find(source):
                return found
            entry.directory.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(entry.lock):
                if found := entry.find(source):  # another process has fetched it meanwhile
                    return found
                source = source or _from_origin(name, row, entry, Path(work))
                entry.save(_convert(name, row, source), source)
                tidy(entry.archives, {str(row.folder) for key, row in WEIGHTS.items() if not entry.has_other(key)})
                return entry.weights
    except (OSError, ValueError) as error:
        raise WeightsNotAvailableError(_advice(name, row, [*tried, str(error)])) from error


def _from_origin(name: str, row: Weights, entry: Entry, work: Path) -> Source:
    assert row.url is not None
    if entry.record.exists():
        _logger.warning("%s is broken or out of date: fetching it again", entry.weights)
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, and it is not in the cache")
    if row.folder is not None:
        return from_release(row.url, row.folder, entry.archives, work)
    _logger.info("Downloading %s from %s", name, row.url)
    download(row.url, work / "checkpoint.pt")
    return Source(work / "checkpoint.pt", row.url)


def _convert(name: str, row: Weights, source: Source) -> dict[str, Tensor]:
    try:
        state_dict = convert_state_dict(
            read_checkpoint(source.checkpoint), name.partition(".")[0], "cvnets", channel_order=row.channel_order
        )
        classes = len(state_dict.get("head.fc.weight", ()))
        if classes != row.num_classes:
            raise ValueError(f"expected a classifier of {row.num_classes} classes, got {classes}")
    except ValueError as error:
        raise ValueError(f"{source.origin}{f' ({source.member})' if source.member else ''}: {error}") from error
    return state_dict


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
    file = f"DIR/{path_of(row)}"
    download_it = f"{KNOWN} from {row.url} by hand to DIR" if row.folder else f"{row.url} by hand to {file}"
    unpacked = ", unpacked," if row.folder else ""
    lines = "".join(f"\n  tried: {line}" for line in tried)
    return (
        f"the pretrained weights {name} are not available{lines}\n"
        f"  to do: download {download_it} and set {VARIABLE}=DIR, or pass the file{unpacked} "
        f"as pretrained_cfg_overlay=dict(file='{file}')"
    )

"""Download pretrained weights that are not on the Hugging Face Hub, convert them and cache them.

Apple's are plain files. Micron's (MobileViTv3) are folders in one archive of a GitHub release, of which only the
archive's directory and the checkpoint are downloaded, unless the server gives whole files only.
"""

import errno
import functools
import io
import json
import logging
import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple
from urllib.request import Request, urlopen
from zipfile import ZipFile, ZipInfo

from huggingface_hub import cached_assets_path, constants
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import sha_fileobj
from safetensors.torch import save_file
from torch import Tensor

from .._files import filling
from .._folders import walk_files
from .._nearest import suggestion
from .._version import __version__
from ..convert import convert_state_dict
from .checkpoint import read_checkpoint
from .pretrained import APPLE, MICRON_ARCHIVE, WEIGHTS, Weights

__all__ = ["WeightsNotAvailableError", "fetch_weights"]

ARCHIVE = "models.zip"
CHECKPOINT = "checkpoint_ema_best.pt"  # the file that the published accuracies were measured with
VARIABLE = "TIMM_MOBILEVIT_WEIGHTS"

_MAX_CHECKPOINT = 1 << 28  # bytes; MobileViT's largest has 74 MB
_MAX_ARCHIVE = 1 << 32
_TAIL = 1 << 20  # bytes at the end of an archive that are read first: enough for the directory of 8,000 files
_STEP = 1 << 20  # bytes without which a download that was cut does not go on
_HEADERS = {"User-Agent": f"timm-mobilevit/{__version__}"}
_logger = logging.getLogger(__name__)


class WeightsNotAvailableError(RuntimeError):
    """Pretrained weights could not be fetched. The message says what was tried and what to do."""


class _Source(NamedTuple):
    """Where a checkpoint was found."""

    checkpoint: Path  # in the layout of its authors
    origin: str  # address or path of the checkpoint, or of the archive that holds it
    member: str | None = None  # path in the archive


def fetch_weights(name: str, cache_dir: str | Path | None = None) -> Path:
    """Get a set of pretrained weights that is published outside the hub, in this package's layout.

    The places to look are, in this order: the directory that ``TIMM_MOBILEVIT_WEIGHTS`` names, the cache, the origin.
    Cached weights need no request. A JSON file of the same name beside them says where they came from, with checksums
    and licence. Any number of processes may call this at the same time.

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
    tree = _tree()
    tried: list[str] = []
    try:
        entry = _Entry(name, row, cache_dir)
        with TemporaryDirectory() as work:
            source = _from_tree(row, tree, Path(work)) if tree else None
            if tree and not source:
                tried.append(f"{VARIABLE}={tree}: not in it")
            # Without the lock and without writing there first: a shared cache may be read-only.
            if found := entry.find(source):
                return found
            entry.directory.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(entry.directory.with_name("lock")):  # of the whole cache: one download at a time
                if found := entry.find(source):  # another process has fetched it meanwhile
                    return found
                if entry.record.exists():
                    _logger.warning("%s is broken or out of date: fetching it again", entry.weights)
                source = source or _from_origin(row, Path(work))
                entry.save(_convert(name, row, source), source)
                return entry.weights
    except (OSError, ValueError) as error:
        raise WeightsNotAvailableError(_advice(name, row, [*tried, str(error)])) from error


def _row(name: str) -> Weights:
    row = WEIGHTS.get(name)
    if row is None:
        raise ValueError(f"no pretrained weights {name!r}; {suggestion(name, WEIGHTS)}")
    if row.url is None:
        raise ValueError(
            f"timm loads {name} from the hub ({row.hf_hub_id}): use timm.create_model({name!r}, pretrained=True)"
        )
    return row


@functools.cache
def _log_licence(license: str, origin: str) -> None:
    """Log the licence, once per process: the call is cached."""
    if "non-commercial" in license:
        _logger.warning(
            "The weights from %s are for non-commercial use only (%s): read their licence before you use them.",
            origin,
            license,
        )


def _convert(name: str, row: Weights, source: _Source) -> dict[str, Tensor]:
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


def _advice(name: str, row: Weights, tried: list[str]) -> str:
    file = f"DIR/{_path_of(row)}"
    download_it = f"{ARCHIVE} from {row.url} by hand to DIR" if row.folder else f"{row.url} by hand to {file}"
    unpacked = ", unpacked," if row.folder else ""
    lines = "".join(f"\n  tried: {line}" for line in tried)
    return (
        f"the pretrained weights {name} are not available{lines}\n"
        f"  to do: download {download_it} and set {VARIABLE}=DIR, or pass the file{unpacked} "
        f"as pretrained_cfg_overlay=dict(file='{file}')"
    )


# ---------------------------------------------------------------------------------------------- cache and local files


class _Entry:
    """The place of one set of weights in the cache: its directory, the safetensors file and the record beside it."""

    def __init__(self, name: str, row: Weights, cache_dir: str | Path | None = None):
        if cache_dir is None:
            self.directory = cached_assets_path("timm-mobilevit", namespace="weights", subfolder=name)
        else:
            self.directory = Path(cache_dir).expanduser() / "timm-mobilevit" / name
        self.weights = self.directory / "model.safetensors"
        self.record = self.directory / "model.json"
        # Fields of the record that must equal those of the row, or the cached file is not used.
        fields = {key: getattr(row, key) for key in ("origin", "folder", "channel_order", "license")}
        self._fields: dict[str, Any] = {"name": name, **fields}

    def find(self, source: _Source | None = None) -> Path | None:
        """Find the cached file, if it is complete and was made as the row says, and from ``source`` if there is one.

        Reading it once to verify its checksum costs 0.1 s for the largest model, a fraction of loading it.
        """
        try:
            record = json.loads(self.record.read_text())
            wanted = {**self._fields, "sha256": _sha256(self.weights)}
            if source is not None:
                wanted["checkpoint_sha256"] = _sha256(source.checkpoint)
            return self.weights if all(record[key] == value for key, value in wanted.items()) else None
        except (OSError, ValueError, KeyError, TypeError):  # nothing there, or not readable
            return None

    def save(self, state_dict: dict[str, Tensor], source: _Source) -> None:
        """Write weights in this package's layout, and their record."""
        record = {
            **self._fields,
            "source": source.origin,
            "member": source.member,
            "checkpoint_sha256": _sha256(source.checkpoint),
            "package_version": __version__,
        }
        with filling(self.directory) as stage:
            file = stage / self.weights.name
            save_file({key: value.contiguous() for key, value in state_dict.items()}, file, metadata={"format": "pt"})
            record["sha256"] = _sha256(file)
            (stage / self.record.name).write_text(json.dumps(record, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def _tree() -> Path | None:
    """Return the directory that the environment variable names; None without one."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    tree = Path(value).expanduser().absolute()
    if not tree.is_dir():
        raise NotADirectoryError(f"{VARIABLE}={value} is not a directory: correct it or unset it")
    return tree


def _path_of(row: Weights) -> str:
    """Return the end of a path, which identifies a checkpoint.

    Base names are not enough: all of Micron's are equal, and two sizes of Apple's are called ``mobilevitv2-1.0.pt``.
    """
    return f"{row.folder}/{CHECKPOINT}" if row.folder is not None else str(row.url).removeprefix(APPLE)


def _from_tree(row: Weights, tree: Path, work: Path) -> _Source | None:
    """Look for the checkpoint of a row in a directory and all below it: as a file, then in the archive."""
    wanted = _path_of(row)
    files = sorted(path for path in walk_files(tree, hidden=True) if path.is_file())
    ends = (path for path in files if path.as_posix().endswith(f"/{wanted}"))
    found = list({path.resolve(): path for path in ends}.values())  # several links to one file count once
    if len(found) > 1:
        raise ValueError(f"expected one file for {wanted}, found {len(found)}: {', '.join(map(str, found[:5]))}")
    if found:
        return _Source(found[0], str(found[0]))
    for archive in files:
        if row.folder and archive.name == ARCHIVE and (member := _take(archive, row.folder, work / CHECKPOINT)):
            return _Source(work / CHECKPOINT, str(archive), member)
    return None


# ----------------------------------------------------------------------------------------------- downloads and archive


def _from_origin(row: Weights, work: Path) -> _Source:
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, and it is not in the cache")
    checkpoint, archive = work / CHECKPOINT, work / ARCHIVE
    if row.folder is None:
        with checkpoint.open("wb") as file:
            _download(str(row.url), file, _MAX_CHECKPOINT)
        return _Source(checkpoint, str(row.url))
    size = _size_if_ranges(MICRON_ARCHIVE)
    with archive.open("wb") as file:
        if size is None:
            _download(MICRON_ARCHIVE, file, _MAX_ARCHIVE)
        else:  # a file with holes, which take no place on the disk: what is read is filled in
            file.truncate(size)
            _fill(file, size - _TAIL, size)
    member = _take(archive, row.folder, checkpoint, has_holes=size is not None)
    if member is None:
        raise FileNotFoundError(f"{MICRON_ARCHIVE} does not hold {row.folder}")
    return _Source(checkpoint, MICRON_ARCHIVE, member)


def _size_if_ranges(url: str) -> int | None:
    """Ask for the size of a file; None where the server gives whole files only."""
    try:
        with urlopen(
            Request(url, headers=_HEADERS | {"Range": "bytes=0-0"}), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            match = re.fullmatch(r"bytes 0-0/(\d{1,10})", response.headers.get("Content-Range", ""))
            return int(match[1]) if match else None
    except Exception as error:  # an answer may break any rule of HTTP
        raise OSError(f"{url}: {error or type(error).__name__}") from error


def _fill(file: BinaryIO, start: int, stop: int) -> None:
    """Put some bytes of Micron's archive into their place in a file.

    The range is absolute: not every server behind GitHub's releases knows suffixes (``bytes=-100``), see
    https://github.com/pypi/warehouse/issues/12823.
    """
    start = max(0, start)
    part = io.BytesIO()
    _download(MICRON_ARCHIVE, part, stop - start, {"Range": f"bytes={start}-{stop - 1}"})
    file.seek(start)
    file.write(part.getvalue())


def _download(url: str, file: BinaryIO, most: int, span: dict[str, str] | None = None) -> None:
    """Download a file of at most ``most`` bytes, or a span of just as many, with a progress bar.

    Where the connection stalls or is cut, the download goes on from there. What arrives is not compared with a
    checksum: the readers of archives and checkpoints do that, with those in the files.
    """
    bounded: Any = _Bounded(file, most)
    headers, size = _HEADERS | (span or {}), most if span else None
    have = 0
    while True:
        try:
            http_get(url, bounded, resume_size=have, headers=headers, expected_size=size)
            return
        except Exception as error:  # of a client for HTTP that changes with the major versions of huggingface_hub
            if file.tell() > have + _STEP and not isinstance(error, OverflowError):
                have = file.tell()  # before version 2.0, huggingface_hub goes on after a stall, but not after a cut
                continue
            raise OSError(f"{url}: {' '.join(str(error).split())[:500] or type(error).__name__}") from error


class _Bounded:
    """A file that takes no more bytes than expected, however many a server sends."""

    def __init__(self, file: BinaryIO, most: int):
        self._file, self._most = file, most

    def write(self, chunk: bytes) -> int:
        if self._file.tell() + len(chunk) > self._most:
            raise OverflowError(f"expected at most {self._most} bytes, got more")
        return self._file.write(chunk)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _take(archive: Path, folder: str, target: Path, *, has_holes: bool = False) -> str | None:
    """Copy ``…/FOLDER/checkpoint_ema_best.pt`` out of a zip archive; return its path there, None if there is none.

    Nothing is unpacked under a name that the archive chose, and nothing larger than any checkpoint could be.
    """
    try:
        with archive.open("r+b" if has_holes else "rb") as file, ZipFile(file) as opened:
            found = [info for info in opened.infolist() if _is_checkpoint(info, folder)]
            paths = ", ".join(sorted(map(_path, found))[:5])
            if len(found) > 1:
                raise ValueError(f"{archive.name}: expected one {CHECKPOINT} of {folder}, found {len(found)}: {paths}")
            for info in found:
                size = max(info.file_size, info.compress_size)
                if size > _MAX_CHECKPOINT:
                    raise ValueError(
                        f"{archive.name}: {paths} is {size} bytes large, expected at most {_MAX_CHECKPOINT}"
                    )
                if has_holes:  # one request for the header, whose length is not known, and the content
                    start = info.header_offset
                    _fill(file, start, min(start + 4096 + info.compress_size, archive.stat().st_size))
                with opened.open(info) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)  # zipfile stops at the declared size, and raises before it
            return paths or None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        # From the disk or the network, not from the data; a damaged zip makes Python seek to places before its start.
        if isinstance(error, OSError) and (error.errno not in (None, errno.EINVAL) or error.__cause__):
            raise
        raise ValueError(f"{archive.name} is broken or no zip archive: {error}") from error


def _is_checkpoint(info: ZipInfo, folder: str) -> bool:
    """Return whether a member is the EMA-best checkpoint in a folder, and its path does not lead out of the archive."""
    parts = _path(info).split("/")
    is_inside = parts[0] != "" and ".." not in parts and ":" not in info.filename
    return parts[-2:] == [folder, CHECKPOINT] and is_inside and not stat.S_ISLNK(info.external_attr >> 16)


def _path(info: ZipInfo) -> str:
    return info.filename.replace("\\", "/")

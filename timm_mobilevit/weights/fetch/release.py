"""A model's checkpoint out of the assets of a GitHub release."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from . import naming
from .archive import take_checkpoint, zip_directory
from .store import Source, sha256
from .transfer import download, fetch_json, fetch_tail

_logger = logging.getLogger(__name__)

_PAGE = re.compile(r"https://github\.com/(?P<repo>[^/]+/[^/]+)/releases/tag/(?P<tag>[^/]+)")
_TAIL_BYTES = 1 << 18  # of a zip: enough for the paths of 2,000 files


@dataclass(frozen=True)
class _Asset:
    name: str
    url: str
    size: int
    digest: str  # "sha256:…"; empty for assets older than June 2025, which have none


def from_release(page: str, folder: str, part: Path, work: Path) -> Source:
    """Find the asset that is, or holds, a model's folder and takes its EMA-best checkpoint.

    Assets named after the model come first. Of the others, those that seem to hold all models are looked into: zip
    archives by reading their directory, where the server allows it, tar archives by downloading them, smallest first.

    Args:
        page: Page of the release, ``https://github.com/OWNER/REPOSITORY/releases/tag/TAG``.
        folder: Folder of the model.
        part: File for the download under way. It stays when the download is cut, and is completed by the next call.
        work: Directory for the checkpoint.

    Returns:
        Where the checkpoint is and where it came from.

    Raises:
        OSError: If the release or an asset cannot be had, or no asset holds the model.
        ValueError: If the asset that should hold the model is broken.
    """
    assets = _list_assets(page)
    ranked = [(order, asset) for asset in assets if (order := naming.rank(asset.name, folder)) is not None]
    passed_over = []
    for order, asset in sorted(ranked, key=lambda pair: (pair[0], pair[1].size)):
        if order > naming.NAMED and not _may_hold(asset, folder):
            continue
        try:
            source = _take(asset, folder, part, work)
        except ValueError as error:
            if order <= naming.NAMED:
                raise
            passed_over.append(str(error))
            continue
        if source is not None:
            return source
    names = ", ".join(asset.name for asset in assets) or "none"
    raise FileNotFoundError("; ".join([f"no asset of {page} holds {folder} (assets: {names})", *passed_over]))


def _list_assets(page: str) -> list[_Asset]:
    match = _PAGE.fullmatch(page)
    assert match is not None, page
    api = os.environ.get("TIMM_MOBILEVIT_GITHUB_API", "https://api.github.com").rstrip("/")
    url = f"{api}/repos/{match['repo']}/releases/tags/{match['tag']}"
    try:
        release = fetch_json(url, token=os.environ.get("GITHUB_TOKEN"))
        return [_asset(row) for row in release["assets"]]
    except OSError as error:
        if isinstance(error.__cause__, HTTPError) and error.__cause__.code in (403, 429):
            raise OSError(f"{error} (GitHub limits anonymous requests: set GITHUB_TOKEN or try later)") from error
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise OSError(f"{url}: not the answer of GitHub's release API") from error


def _asset(row: dict[str, Any]) -> _Asset:
    name = Path(row["name"]).name
    if not name.isprintable():  # it becomes the name of a file
        raise ValueError(f"expected the name of an asset, got {name!r}")
    return _Asset(name, str(row["browser_download_url"]), int(row["size"]), str(row.get("digest") or ""))


def _may_hold(asset: _Asset, folder: str) -> bool:
    """False only for a zip archive whose directory could be read and does not list the model."""
    if not naming.is_zip(asset.name):
        return True
    tail = fetch_tail(asset.url, _TAIL_BYTES)
    paths = zip_directory(tail) if tail else None
    return paths is None or naming.select(paths, folder) is not None


def _take(asset: _Asset, folder: str, part: Path, work: Path) -> Source | None:
    _logger.info("Downloading %s (%.1f MB) from %s", asset.name, asset.size / 1e6, asset.url)
    download(asset.url, part, size=asset.size)
    file, checkpoint = work / asset.name, work / "checkpoint.pt"
    os.replace(part, file)
    if asset.digest.startswith("sha256:") and asset.digest != f"sha256:{sha256(file)}":
        raise ValueError(f"{asset.name} does not have the checksum that the release states")
    if naming.is_plain(asset.name):
        os.replace(file, checkpoint)
        return Source(checkpoint, url=asset.url, asset=asset.name)
    member = take_checkpoint(file, folder, checkpoint, flat=naming.is_named_after(asset.name, folder))
    # Not kept for the other models it may hold: it can be many times the size of what is used of it.
    file.unlink()
    return Source(checkpoint, url=asset.url, asset=asset.name, member=member) if member else None

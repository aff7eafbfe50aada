"""A model's checkpoint out of the archives of a GitHub release."""

import json
import logging
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

from ..._files import replacing
from .archive import ARCHIVE, BrokenArchiveError, folders, take_checkpoint
from .remote import RemoteFile
from .store import Source, sha256
from .transfer import download

KNOWN = "models.zip"  # Micron's one archive: https://github.com/micronDLA/MobileViTv3/issues/3

_logger = logging.getLogger(__name__)
_PAGE = re.compile(r"https://github\.com/(?P<repo>[^/]+/[^/]+)/releases/tag/(?P<tag>[^/]+)")


class _Asset(NamedTuple):
    name: str
    url: str
    size: int
    digest: str  # "sha256:…"; empty for assets older than June 2025, which have none


def from_release(page: str, folder: str, kept: Path, work: Path) -> Source:
    """Take a model's checkpoint out of ``models.zip``, or else out of whichever other archive holds it.

    Only the archive's directory and the checkpoint are downloaded. Where the server does not allow it, the whole is
    downloaded, and kept for the next model.

    Args:
        page: Page of the release, ``https://github.com/OWNER/REPOSITORY/releases/tag/TAG``.
        folder: Folder of the model.
        kept: Directory for whole archives.
        work: Directory for the checkpoint.

    Raises:
        OSError: If the release or an archive cannot be downloaded, or no archive holds the model.
    """
    archives = _list_archives(page, work / "release.json")
    broken = []
    for asset in sorted(archives, key=lambda asset: (not (kept / asset.name).exists(), asset.name != KNOWN)):
        try:
            if member := _take(asset, folder, kept, work):
                return Source(work / "checkpoint.pt", asset.url, member)
        except ValueError as error:
            broken.append(str(error))
    names = ", ".join(asset.name for asset in archives) or "none"
    raise FileNotFoundError("; ".join([f"no archive of {page} holds {folder} (archives: {names})", *broken]))


def tidy(kept: Path, wanted: Collection[str]) -> None:
    """Delete kept archives that hold none of the wanted folders, and what a killed process left."""
    for file in kept.iterdir() if kept.is_dir() else ():
        if file.is_dir():
            shutil.rmtree(file)
        elif not ARCHIVE.fullmatch(file.name) or folders(file).isdisjoint(wanted):
            file.unlink()


def _list_archives(page: str, answer: Path) -> list[_Asset]:
    match = _PAGE.fullmatch(page)
    assert match is not None, page
    api = os.environ.get("TIMM_MOBILEVIT_GITHUB_API", "https://api.github.com").rstrip("/")
    url = f"{api}/repos/{match['repo']}/releases/tags/{match['tag']}"
    try:
        download(url, answer, most=1 << 24, token=os.environ.get("GITHUB_TOKEN"))
        assets = [
            _Asset(row["name"], str(row["browser_download_url"]), int(row["size"]), str(row.get("digest") or ""))
            for row in json.loads(answer.read_bytes())["assets"]
            if ARCHIVE.fullmatch(row["name"])
        ]
        if any(not 0 < asset.size < 1 << 40 for asset in assets):
            raise ValueError("sizes out of range")
        return assets
    except OSError as error:
        if isinstance(error.__cause__, HTTPError) and error.__cause__.code in (403, 429):
            raise OSError(f"{error} (GitHub limits anonymous requests: set GITHUB_TOKEN or try later)") from error
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise OSError(f"{url}: not the answer of GitHub's release API") from error


def _take(asset: _Asset, folder: str, kept: Path, work: Path) -> str | None:
    archive, checkpoint = kept / asset.name, work / "checkpoint.pt"
    if not archive.exists():
        try:
            return take_checkpoint(RemoteFile(asset.url, asset.size, work), folder, checkpoint)
        except (OSError, BrokenArchiveError) as error:
            _logger.info("%s cannot be read in part: %s", asset.url, error)
    if not archive.exists() or archive.stat().st_size != asset.size:
        _logger.info("Downloading %s (%.1f MB) from %s", asset.name, asset.size / 1e6, asset.url)
        with replacing(archive) as temporary:
            download(asset.url, temporary, size=asset.size)
            if asset.digest.startswith("sha256:") and asset.digest != f"sha256:{sha256(temporary)}":
                raise ValueError(f"{asset.name} does not have the checksum that the release states")
    member = None
    try:
        member = take_checkpoint(archive, folder, checkpoint)
    finally:
        if member is None:  # not in it, or broken
            archive.unlink()
    return member

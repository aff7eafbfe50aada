"""Converted weights on disk: one directory per set, with a safetensors file and a JSON that says where it came from."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from safetensors.torch import save_file
from torch import Tensor

from ..._version import __version__
from ..pretrained import Weights


@dataclass(frozen=True)
class Source:
    """Where a checkpoint was found.

    Attributes:
        checkpoint: File in the layout of its authors.
        url: Address that it, or the archive that holds it, was downloaded from.
        asset: Name of the file that was downloaded or found.
        member: Path in the archive.
        file: File of the user's own that was read.
    """

    checkpoint: Path
    url: str | None = None
    asset: str | None = None
    member: str | None = None
    file: Path | None = None


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Entry:
    """The place of one set of weights in the cache.

    Args:
        name: ``arch.tag``. The key of the cache, since the files of different sets share their names at the source.
        row: The row of the pretrained table.
        cache_dir: Directory to keep it in, instead of the hub's cache.

    Example:
        >>> from timm_mobilevit.weights.pretrained import WEIGHTS
        >>> name = "mobilevitv3_xxs.micron_in1k"
        >>> Entry(name, WEIGHTS[name], Path("cache")).weights.as_posix()
        'cache/timm-mobilevit/mobilevitv3_xxs.micron_in1k/model.safetensors'
    """

    def __init__(self, name: str, row: Weights, cache_dir: Path | None = None):
        self.name = name
        self.row = row
        if cache_dir is None:
            self.directory = cached_assets_path("timm-mobilevit", namespace="weights", subfolder=name)
        else:
            self.directory = cache_dir / "timm-mobilevit" / name
        self.weights = self.directory / "model.safetensors"
        self.record = self.directory / "model.json"
        self.part = self.directory / "download.part"
        self.work = self.directory / "work"  # emptied by whoever holds the lock
        self.lock = self.directory / "lock"

    def find(self, tree: Path | None = None) -> Path | None:
        """Find the cached file, if it is whole and was made as the row asks for.

        Reading it once to verify its checksum costs 0.1 s for the largest model, a fraction of loading it.

        Args:
            tree: Accept only what was made from an unchanged file in this directory.
        """
        try:
            record = json.loads(self.record.read_text())
            wanted = {**self._facts(), "sha256": sha256(self.weights)}
            if not all(record[key] == value for key, value in wanted.items()):
                return None
            if tree is not None:
                file = Path(record["file"]["path"])
                if not file.is_relative_to(tree) or record["file"] != _identity(file):
                    return None
        except (OSError, ValueError, KeyError, TypeError):  # nothing there, or not readable
            return None
        return self.weights

    def save(self, state_dict: dict[str, Tensor], source: Source) -> Path:
        """Write the weights and their record.

        Args:
            state_dict: Weights in this package's layout.
            source: Where they came from.
        """
        weights, record = self.work / self.weights.name, self.work / self.record.name
        save_file({key: value.contiguous() for key, value in state_dict.items()}, weights, metadata={"format": "pt"})
        facts = {
            **self._facts(),
            "url": source.url,
            "asset": source.asset,
            "member": source.member,
            "file": _identity(source.file) if source.file else None,
            "checkpoint_sha256": sha256(source.checkpoint),
            "sha256": sha256(weights),
            "package_version": __version__,
        }
        record.write_text(json.dumps(facts, indent=2) + "\n")
        # The record last: without one that matches, the weights count as absent.
        os.replace(weights, self.weights)
        os.replace(record, self.record)
        return self.weights

    def _facts(self) -> dict[str, Any]:
        """What a cached file must agree in with the row to be used."""
        return {
            "name": self.name,
            "origin": self.row.origin,
            "folder": self.row.folder,
            "channel_order": self.row.channel_order,
            "license": self.row.license,
        }


def _identity(file: Path) -> dict[str, Any]:
    state = file.stat()
    return {"path": str(file), "size": state.st_size, "mtime_ns": state.st_mtime_ns}

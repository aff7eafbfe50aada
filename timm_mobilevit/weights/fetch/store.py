"""Converted weights on disk: one directory per set, with a safetensors file and a JSON that says where it came from."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from safetensors.torch import save_file
from torch import Tensor

from ..._files import filling
from ..._version import __version__
from ..pretrained import Weights


@dataclass(frozen=True)
class Source:
    """Where a checkpoint was found.

    Attributes:
        checkpoint: File in the layout of its authors.
        origin: Address or path of the file that was downloaded or found: the checkpoint, or an archive that holds it.
        member: Path in the archive.
    """

    checkpoint: Path
    origin: str
    member: str | None = None


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
        if cache_dir is None:
            self.directory = cached_assets_path("timm-mobilevit", namespace="weights", subfolder=name)
        else:
            self.directory = cache_dir / "timm-mobilevit" / name
        self.weights = self.directory / "model.safetensors"
        self.record = self.directory / "model.json"
        self.lock = self.directory.with_name("lock")  # of the whole cache: models come out of one archive
        self.archives = self.directory.with_name("archives")
        # What the cached file must agree in with the row to be used.
        self._facts = {
            "name": name,
            "origin": row.origin,
            "folder": row.folder,
            "channel_order": row.channel_order,
            "license": row.license,
        }

    def find(self, source: Source | None = None) -> Path | None:
        """Find the cached file, if it is whole and was made as the row asks for, and from ``source`` if there is one.

        Reading it once to verify its checksum costs 0.1 s for the largest model, a fraction of loading it.
        """
        try:
            record = json.loads(self.record.read_text())
            wanted = {**self._facts, "sha256": sha256(self.weights)}
            if source is not None:
                wanted["checkpoint_sha256"] = sha256(source.checkpoint)
            return self.weights if all(record[key] == value for key, value in wanted.items()) else None
        except (OSError, ValueError, KeyError, TypeError):  # nothing there, or not readable
            return None

    def has_other(self, name: str) -> bool:
        """Whether the cache holds another set of weights, whole or not."""
        return (self.directory.with_name(name) / self.record.name).exists()

    def save(self, state_dict: dict[str, Tensor], source: Source) -> None:
        """Write weights in this package's layout, and their record."""
        facts: dict[str, Any] = {
            **self._facts,
            "source": source.origin,
            "member": source.member,
            "checkpoint_sha256": sha256(source.checkpoint),
            "package_version": __version__,
        }
        with filling(self.directory) as stage:
            file = stage / self.weights.name
            save_file({key: value.contiguous() for key, value in state_dict.items()}, file, metadata={"format": "pt"})
            facts["sha256"] = sha256(file)
            (stage / self.record.name).write_text(json.dumps(facts, indent=2) + "\n")

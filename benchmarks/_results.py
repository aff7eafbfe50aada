"""CSV files of measurements: what they are called, what each says about its origin, and which is the newest."""

import csv
import datetime
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from timm_mobilevit._files import replacing

RESULTS = Path(__file__).parent / "results"

_NAME = re.compile(
    r"(?P<bench>[a-z0-9-]+)_(?P<device>[a-z0-9-]+)_torch(?P<torch>[^_]+)_timm(?P<timm>[^_]+)_(?P<date>\d{4}-\d\d-\d\d)\.csv"
)

# Instruction sets that decide how fast a processor computes, each better than those before it: the flag in
# /proc/cpuinfo on Linux, its name in the files, and its title in the tables.
_SETS = (
    ("asimd", "neon", "Arm"),
    ("avx2", "avx2", "AVX2"),
    ("avx512bw", "avx512", "AVX-512"),
    ("avx512_vnni", "avx512_vnni", "AVX-512 with VNNI"),
    ("avx512_bf16", "avx512_bf16", "AVX-512 with VNNI and BF16"),
    ("amx_bf16", "amx", "AMX"),
)
SETS = {f"cpu-{name}".replace("_", "-"): title for _, name, title in _SETS}  # titles by the part of a file's name


def device_name(device: str) -> str:
    """Return the name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def instructions(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the instruction set of the processor, "unknown" where the system does not say.

    Args:
        info: What the system says about its processors.

    Example:
        >>> instructions() in {"unknown", *(name for _, name, _ in _SETS)}
        True
    """
    found = re.search(r"^(?:flags|Features)\s*: (.+)", info.read_text(), re.MULTILINE) if info.exists() else None
    flags = set(found[1].split()) if found else set()
    return next((name for flag, name, _ in reversed(_SETS) if flag in flags), "unknown")


def origin(device: str) -> dict[str, object]:
    """Return the columns that say where and with what a row was measured."""
    return {
        "device": device_name(device),
        "instructions": instructions() if device == "cpu" else "",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "timm", "transformers", "onnxruntime")},
        "date": datetime.date.today().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def file_name(bench: str, device: str) -> str:
    """Name the file for a measurement of today: ``BENCH_DEVICE_torchVERSION_timmVERSION_DATE.csv``."""
    name = f"cpu-{instructions()}" if device == "cpu" else device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    versions = f"torch{torch.__version__.partition('+')[0]}_timm{version('timm')}"
    return f"{bench}_{slug}_{versions}_{datetime.date.today()}.csv"


def write(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows of the same columns, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file that :func:`write` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def merge(rows: Iterable[Mapping[str, object]], path: Path, columns: Sequence[str]) -> int:
    """Write rows, each in the place of that with the same values in some columns; return how many the file has.

    Args:
        rows: New rows, with the columns of those in the file.
        path: File, which need not exist.
        columns: What a row is about.
    """
    merged: dict[tuple[str, ...], Mapping[str, object]] = {}
    for row in (*(read(path) if path.exists() else ()), *rows):
        merged[tuple(str(row[column]) for column in columns)] = row
    write(list(merged.values()), path)
    return len(merged)


def newest(bench: str, folder: Path = RESULTS) -> dict[str, Path]:
    """Return the latest file of a benchmark for each device, by its part of the name: CPUs first, in the order of sets.

    Args:
        bench: First part of the file's name.
        folder: Where to look.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in folder.glob(f"{bench}_*.csv"):
        name = _NAME.fullmatch(path.name)
        if name and name["bench"] == bench:
            found[name["device"]] = max(found.get(name["device"], ("", path)), (name["date"], path))
    order = [*SETS, *sorted(found.keys() - SETS)]
    return {device: found[device][1] for device in order if device in found}

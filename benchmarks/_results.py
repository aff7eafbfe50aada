"""CSV files of measurements: what they are called, what each says about its origin, and which is the newest."""

import csv
import datetime
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from timm_mobilevit._files import replacing

RESULTS = Path(__file__).parent / "results"

_NAME = re.compile(
    r"(?P<bench>[a-z-]+)_(?P<device>[a-z0-9-]+)_(?P<dtype>[a-z0-9-]+)_torch(?P<torch>[^_]+)_timm(?P<timm>[^_]+)"
    r"_(?P<date>\d{4}-\d\d-\d\d)\.csv"
)


def device_name(device: str) -> str:
    """Return the processor's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


# What decides how fast int8 and bfloat16 are: the flag in /proc/cpuinfo on Linux, and how we write it.
_INSTRUCTIONS = {
    "avx2": "avx2",
    "avx512bw": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "neon_dotprod",
    "i8mm": "neon_i8mm",
}


def instructions(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the vector instructions that int8 and bfloat16 depend on, empty where the system does not say.

    Args:
        info: What the system says of its processors.

    Example:
        >>> set(instructions().split()) <= set(_INSTRUCTIONS.values())
        True
    """
    found = re.search(r"^(?:flags|Features)\s*: (.+)", info.read_text(), re.MULTILINE) if info.exists() else None
    flags = set(found[1].split()) if found else set()
    return " ".join(name for flag, name in _INSTRUCTIONS.items() if flag in flags)


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


def file_name(bench: str, device: str, dtypes: Sequence[str]) -> str:
    """Name the file for a measurement of today: ``BENCH_DEVICE_DTYPE_torchVERSION_timmVERSION_DATE.csv``."""
    slug = "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    torch_version = torch.__version__.partition("+")[0]
    return "_".join(
        (
            bench,
            slug,
            "-".join(dict.fromkeys(dtypes)),
            f"torch{torch_version}",
            f"timm{version('timm')}",
            f"{datetime.date.today()}.csv",
        )
    )


def write(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows of the same columns, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a file that :func:`write` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def newest(bench: str, device: str, folder: Path = RESULTS) -> Path | None:
    """Return the latest file of a benchmark on a kind of device, None if there is none.

    Args:
        bench: First part of the file's name.
        device: "cpu" or "cuda", which is every other device.
        folder: Where to look.
    """
    found = []
    for path in folder.glob(f"{bench}_*.csv"):
        name = _NAME.fullmatch(path.name)
        if name and name["bench"] == bench and (name["device"] == "cpu") == (device == "cpu"):
            found.append((name["date"], path.name, path))
    return max(found)[-1] if found else None

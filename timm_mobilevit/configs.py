"""The configs for MMDetection and MMSegmentation that are installed with the package."""

from pathlib import Path

from ._nearest import suggestion

__all__ = ["find_config", "list_configs"]

# Where OpenMMLab packages keep theirs: setup.py copies mm_configs there. A checkout has mm_configs alone.
_INSTALLED = Path(__file__).parent / ".mim" / "configs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "mm_configs"


def list_configs() -> list[Path]:
    """List the configs of detectors and segmentors, without the bases that they inherit from."""
    return sorted(path for path in FOLDER.glob("*/*/*.py") if path.parent.name != "_base_")


def find_config(name: str | Path) -> Path:
    """Find a config by its name.

    Args:
        name: Path of a file, or the name of an installed config, or the beginning of one.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If there are several.

    Example:
        >>> find_config("ssdlite_mobilevitv3-xxs").name
        'ssdlite_mobilevitv3-xxs_4xb64-200e_coco-320x320.py'
    """
    if Path(name).is_file():
        return Path(name)
    *folders, start = Path(name).parts or ("",)  # of the repository's own too, "mm_configs/mmdet/ssdlite/…"
    found = [path for path in list_configs() if path.name.startswith(start) and _lies_in(path, folders)]
    found = [path for path in found if path.stem == Path(name).stem] or found
    if not found:
        hint = suggestion(Path(name).stem, [path.stem for path in list_configs()], "`timm-mobilevit config` lists all")
        raise FileNotFoundError(f"no config {name}: it is neither a file nor one of those in {FOLDER}; {hint}")
    if len(found) > 1:
        raise ValueError(f"{name} could be any of {', '.join(path.stem for path in found)}")
    return found[0]


def _lies_in(path: Path, folders: list[str]) -> bool:
    own = ["mm_configs", *path.relative_to(FOLDER).parent.parts]
    return own[len(own) - len(folders) :] == folders

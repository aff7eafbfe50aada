"""Whether an exported file can be written where it is wanted, asked before the export."""

from pathlib import Path

from .._files import check_file
from ..formats import FORMATS
from ._facts import facts_file


def check_target(path: Path, to: str, *, force: bool = True) -> None:
    """Refuse a name that no file of a format can have, or that cannot be written.

    Args:
        path: The file, or the directory of a format that has several.
        to: A key of ``FORMATS``.
        force: Whether it, and the files that belong to it, may be overwritten.

    Raises:
        ValueError: If the name has another ending, is there and ``force`` is not set, or is of another kind.
        OSError: If there is no right to write it.

    Example:
        >>> check_target(Path("model.txt"), "onnx")
        Traceback (most recent call last):
        ...
        ValueError: expected a name that ends in .onnx for ONNX, got model.txt
    """
    form = FORMATS[to]
    if not path.name.endswith(form.ending) or path.name == form.ending:
        raise ValueError(f"expected a name that ends in {form.ending} for {form.title}, got {path}")
    check_file(path, force=force, is_folder=form.is_folder)
    others = [path.with_suffix(ending) for ending in form.siblings]
    if not form.has_metadata:
        others.append(facts_file(path))
    for other in others:
        check_file(other, force=force)

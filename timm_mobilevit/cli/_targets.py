"""Targets of a command: checked before its work, and reserved until it ends."""

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from .._files import check_file, check_folder, claimed


def reserve_file(context: typer.Context, path: Path, *, force: bool, check: Callable[..., None] = check_file) -> None:
    """Refuse a file that cannot be written, and reserve it until the command ends.

    Raises:
        ValueError: If it is there and ``force`` is not set, or it is of another kind.
        OSError: If there is no right to write it, or another process is writing it.
    """
    _reserve(context, path.parent, path.name, lambda: check(path, force=force))


def reserve_folder(
    context: typer.Context, path: Path, names: Iterable[str], *, force: bool = True, claim: str = ""
) -> None:
    """Refuse a folder that files of some names cannot be written into, and reserve it until the command ends.

    ``claim`` says what is written, if others may write other things there at the same time.

    Raises:
        ValueError: If it is a file, or holds something and ``force`` is not set.
        OSError: If there is no right to write into it, or another process is writing there.
    """
    names = list(names)
    _reserve(context, path, claim, lambda: check_folder(path, names, force=force))


def _reserve(context: typer.Context, folder: Path, name: str, check: Callable[[], None]) -> None:
    check()
    context.with_resource(claimed(folder, name))
    check()  # for another process may have written it in between

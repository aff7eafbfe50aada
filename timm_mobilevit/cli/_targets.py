"""Targets of a command: checked before its work, and reserved until it ends."""

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from .._files import check_file, check_folder, claimed


def reserve_file(context: typer.Context, path: Path, *, force: bool, check: Callable[..., None] = check_file) -> None:
    """Refuse a file that cannot be written, and reserve it for this command.

    Args:
        context: The command's context, at whose end the file is free again.
        path: The file.
        force: Whether it may be overwritten.
        check: What checks it, called with the path and ``force``.

    Raises:
        ValueError: If it is there and ``force`` is not set, or it is of another kind.
        OSError: If there is no right to write it, or another process is writing it.
    """
    _reserve(context, path.parent, path.name, lambda: check(path, force=force))


def reserve_folder(
    context: typer.Context, path: Path, names: Iterable[str], *, force: bool = True, claim: str = ""
) -> None:
    """Refuse a folder that files cannot be written into, and reserve it for this command.

    Args:
        context: The command's context, at whose end the folder is free again.
        path: The folder.
        names: Files that will be written.
        force: Whether the folder may hold something.
        claim: What is written there, if others may write other things there at the same time.

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

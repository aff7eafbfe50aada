"""Write files completely or not at all: the target is checked before the work, and replaced at its end."""

import errno
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Prefix of names beside a target while it is written. Without a process number: two containers may both have 1.
HIDDEN = ".timm-mobilevit-"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def check_file(path: Path, *, force: bool = True, is_folder: bool = False) -> None:
    """Refuse a file that cannot be written, before the work for it begins.

    Args:
        path: The file.
        force: Whether it may be overwritten.
        is_folder: Whether it is a folder, as some formats of models are, which is replaced as a whole.

    Raises:
        ValueError: If it exists and ``force`` is not set, it is of another kind, or its folder is not a folder.
        OSError: If there is no right to write it.

    Example:
        >>> import tempfile
        >>> check_file(Path(tempfile.mkdtemp()))
        Traceback (most recent call last):
        ...
        ValueError: ... is a folder; expected the name of a file to write
    """
    wanted, is_special = "folder" if is_folder else "file", os.path.exists(path) and not os.path.isfile(path)
    kind = "folder" if os.path.isdir(path) else "device or pipe" if is_special else "file"  # or a link to nothing
    if os.path.lexists(path) and kind != wanted:
        raise ValueError(f"{path} is a {kind}; expected the name of a {wanted} to write")
    if not force and os.path.lexists(path):
        raise ValueError(f"{path} exists; choose another name with --out, or overwrite it with --force")
    if os.path.isfile(path):
        try:
            with path.open("r+b"):
                pass
        except OSError as error:
            raise _cannot_write(path, error) from error
    _try(path.parent, path)


def check_folder(path: Path, names: Iterable[str] = (), *, force: bool = True) -> None:
    """Refuse a folder that files cannot be written into, before the work for them begins.

    Args:
        path: The folder. It need not be there yet.
        names: Files that will be written, as paths in the folder.
        force: Whether it may hold something already.

    Raises:
        ValueError: If it is a file, or holds something and ``force`` is not set, or one of the names is a folder.
        OSError: If there is no right to write one of them.
    """
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is a file; expected a folder to write to")
    if not force and os.path.isdir(path) and any(not file.name.startswith(HIDDEN) for file in path.iterdir()):
        raise ValueError(f"{path} is not empty; choose another folder, or overwrite with --force")
    _try(path, path)
    for name in names:
        check_file(path / name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces a file at the end.

    Its name is the file's own, by which libraries know the format, in a hidden folder beside the file. Other files that
    are written into that folder move too. Missing folders are made. After an error, nothing has changed.

    Args:
        path: The file, or the folder that is replaced as a whole.

    Raises:
        OSError: If the disk is full, whichever exception the writing library raises.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "new", "note.txt")
        >>> with replacing(file) as temporary:
        ...     _ = temporary.write_text("done")
        >>> file.read_text(), len(list(file.parent.iterdir()))
        ('done', 1)
    """
    with filling(path.parent, path) as stage:
        yield stage / path.name


@contextmanager
def filling(folder: Path, target: Path | None = None) -> Iterator[Path]:
    """Give a hidden folder to write to; at the end, its files move into a folder, all or none.

    Files of other names stay. After an error, nothing has changed.

    Args:
        folder: The folder; it is made where needed. The hidden one is in it, since it may be a file system of its own.
        target: What an error names; None for the folder.

    Raises:
        OSError: If the disk is full, whichever exception the writing library raises.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "new")
        >>> with filling(folder) as stage:
        ...     for name in ("a.txt", "b.txt"):
        ...         _ = (stage / name).write_text(name)
        ...     len(list(folder.glob("[ab].txt")))
        0
        >>> sorted(file.name for file in folder.iterdir())
        ['a.txt', 'b.txt']
    """
    with _made(folder):
        try:
            stage = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=folder))
        except OSError as error:
            raise _cannot_write(target or folder, error) from error
        try:
            yield stage
            _move(stage, folder)
        except Exception as error:
            if refusal := _refusal(error, stage):
                raise _cannot_write(target or folder, refusal) from error
            raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def claimed(folder: Path, name: str = "") -> Iterator[None]:
    """Reserve a target: other processes that want the same one end with an error.

    The reservation ends with the process, even if that is killed. A missing folder is made, and removed if it stays
    empty.

    Args:
        folder: The folder that is written to.
        name: Name of the target in it, if other targets there may be written at the same time.

    Raises:
        OSError: If another process has the claim, or there is no right to write to the folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with claimed(folder), claimed(folder):
        ...     pass
        Traceback (most recent call last):
        ...
        BlockingIOError: another process is writing ...; wait until it has ended, or choose another place
    """
    with _made(folder):
        path = folder / f"{HIDDEN}{zlib.crc32(name.encode()):08x}.lock"
        try:
            file = _lock(path)
        except (BlockingIOError, FileExistsError) as error:
            raise BlockingIOError(
                f"another process is writing {folder / name}; wait until it has ended, or choose another place"
            ) from error
        except OSError as error:
            raise _cannot_write(folder / name, error) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is given up: _lock looks whether the file is still there
            os.close(file)


def _lock(path: Path) -> int:
    """Open a file and lock it; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: a file that is there as long as it is open
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)  # type: ignore[attr-defined]
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # its owner has removed it meanwhile


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and its missing parents; those that stay empty are removed at the end."""
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # one that is not empty
            for path in missing:
                path.rmdir()


def _move(stage: Path, folder: Path) -> None:
    """Move everything in one folder to another, over what is there: all of it or, after an error, none.

    What is replaced is moved away first, so that a process that is killed meanwhile leaves no mix of old and new.
    """
    names = sorted(os.listdir(stage))
    for name in names:
        if os.path.lexists(folder / name) and (folder / name).is_dir() != (stage / name).is_dir():
            raise ValueError(f"{folder / name} is {'a folder' if (folder / name).is_dir() else 'no folder'}")
    if len(names) == 1 and not (stage / names[0]).is_dir():
        os.replace(stage / names[0], folder / names[0])  # in one step
        return
    old = stage / HIDDEN
    old.mkdir()
    try:
        for name in names:
            if os.path.lexists(folder / name):
                os.replace(folder / name, old / name)
        for name in names:
            os.replace(stage / name, folder / name)
    except BaseException:
        for name in names:
            if not os.path.lexists(stage / name):
                os.replace(folder / name, stage / name)
            if os.path.lexists(old / name):
                os.replace(old / name, folder / name)
        raise


def _try(folder: Path, target: Path) -> None:
    """Make a folder, and a file in it if that is the target, inside a hidden folder that is removed again.

    A look at the rights is not enough: root has all, and still cannot write to a read-only file system.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        raise ValueError(f"cannot write {target}: {there} is no folder")
    try:
        with tempfile.TemporaryDirectory(prefix=HIDDEN, dir=there) as scratch:
            trial = Path(scratch) / folder.relative_to(there)
            trial.mkdir(parents=True, exist_ok=True)
            if target != folder:
                (trial / target.name).touch()
    except OSError as error:
        raise _cannot_write(target, error) from error


def _refusal(error: Exception, stage: Path) -> OSError | None:
    """Find out whether the disk is the reason why a library could not write: each raises another exception then."""
    if isinstance(error, OSError):
        return error if error.errno in _NO_ROOM and error.filename is None else None
    if isinstance(error, ValueError):
        return None
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # libraries written in Rust, such as safetensors
        return OSError(int(found[1]), os.strerror(int(found[1])))
    try:
        for file in stage.rglob("*"):
            if file.is_file():
                with file.open("ab") as more:
                    more.write(bytes(1 << 20))
    except OSError as refusal:
        return refusal
    return None


def _cannot_write(path: Path, error: OSError) -> OSError:
    kind = type(OSError(error.errno, "")) if error.errno else OSError  # PermissionError and the like
    failure: OSError = kind(f"cannot write {path}: {error.strerror or error}")
    failure.errno = error.errno
    return failure

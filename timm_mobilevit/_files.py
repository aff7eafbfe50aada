"""Writing files completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside a file to write to; at the end, what was written takes the file's place.

    Folders are made where needed. After an error the file is as it was.

    Args:
        path: The file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "new", "note.txt")
        >>> with replacing(file) as temporary:
        ...     _ = temporary.write_text("done")
        >>> file.read_text(), len(list(file.parent.iterdir()))
        ('done', 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # with its suffix, by which libraries know the format
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

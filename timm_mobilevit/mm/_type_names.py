"""Names of the types in configs, however these are written."""

from typing import Any


def type_name(kind: Any) -> str:
    """Return the name of a class that a config names as a string, with a scope or without, or has as a class.

    Example:
        >>> type_name("mmdet.Resize"), type_name("Resize"), type_name(dict)
        ('Resize', 'Resize', 'dict')
    """
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", str(kind))

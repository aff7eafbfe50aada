"""What the error for an unknown name suggests."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """Suggest the names that are most similar to an unknown one.

    Args:
        name: The unknown name.
        names: The known ones.
        otherwise: What to return if none is similar; a list of all names if empty.

    Example:
        >>> suggestion("mobilevitv9_s", ["mobilevitv3_s", "resnet18"])
        'did you mean mobilevitv3_s?'
        >>> suggestion("vit", ["mobilevitv3_s", "resnet18"])
        'there are: mobilevitv3_s, resnet18'
    """
    names = list(names)
    if near := get_close_matches(name, names, n=3):
        return f"did you mean {', '.join(near)}?"
    return otherwise or f"there are: {', '.join(names)}"
